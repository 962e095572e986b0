"""What a figure of a paper is, and what most of them need."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..outputs import Output
from ..page.series import DENSE, SAME_TIME
from ..page.style import LIGHT
from ..records import Record, by_method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP"


@dataclass(frozen=True)
class PaperFigure:
    """One figure.

    Attributes:
        name: as it is typed, `prunetrain/2b`.
        title: what it shows.
        needs: which runs it is made of.
        draw: makes a picture of finished runs, in the format of the path's suffix; raises ConfigError where they are
            not those that it needs.
    """

    name: str
    title: str
    needs: str
    draw: Callable[[Sequence[Record], Path], None]


def finished(outputs: Sequence[Output]) -> list[Record]:
    """The finished runs of full length of all folders."""
    return [record for output in outputs for record in output.full if not record["stopped"]]


def some(records: Sequence[Record], what: str) -> list[Record]:
    """The same; raises ConfigError where there are none."""
    if not records:
        raise ConfigError("the runs are not those that this figure needs", expected=what)
    return list(records)


def methods_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs of each method, without the dense network and its runs of a method's time."""
    return {
        method: runs
        for method, runs in by_method(records).items()
        if method != DENSE and not method.startswith(SAME_TIME)
    }


def mean_of(runs: Sequence[Record], key: str | Callable[[Record], float]) -> tuple[float, float]:
    """Mean and standard deviation over the runs; 0 of a single run.

    Raises:
        ConfigError: they differ in model, data or metric.
    """
    kinds = list(dict.fromkeys((run["model"], run["data"], run.get("metric", "accuracy")) for run in runs))
    if len(kinds) > 1:
        raise ConfigError(
            "the runs differ in model, data or metric, and cannot be averaged",
            where=str(runs[0]["method"]),
            expected=", ".join(kinds[0]),
            found=", ".join(kinds[1]),
            todo="Give the runs of one model, data set and metric",
        )
    values = [float(run[key]) if isinstance(key, str) else key(run) for run in runs]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def new_figure(panels: int = 1, *, width: float = 5.2, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """A row of panels of so many inches each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, width * panels), height), layout="constrained")
    found = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in found:
        axes.grid(alpha=0.3)
    return figure, found


def colour(number: int) -> str:
    """The page's colours, in turn."""
    return LIGHT[number % len(LIGHT)]


def subject(records: Sequence[Record]) -> str:
    """`resnet20 on cifar10`, of all models and data among the runs."""
    models, data = (list(dict.fromkeys(record[key] for record in records)) for key in ("model", "data"))
    return f"{', '.join(models)} on {', '.join(data)}"


def bare(method: str) -> str:
    """A method's name without its settings."""
    return method.partition("(")[0]


def save(figure: Figure, path: Path) -> None:
    """In the format of its suffix."""
    figure.savefig(path, dpi=130)

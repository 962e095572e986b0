"""All figures by name, and one of them as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError
from ...spec import suggest
from ..outputs import Output, drawn
from . import autoprog, network_expansion, prunetrain
from .figure import PaperFigure, finished

FIGURES = {each.name: each for paper in (network_expansion, autoprog, prunetrain) for each in paper.FIGURES}


def figure_named(name: str) -> PaperFigure:
    """One figure; raises ConfigError where there is no such one."""
    if name not in FIGURES:
        raise ConfigError(f"no figure '{name}'", todo=f"{suggest(name, FIGURES)} `morphogen figure` lists them")
    return FIGURES[name]


def draw_figure(figure: PaperFigure, outputs: Sequence[Output], path: Path) -> None:
    """Draw it, in the format of the path's suffix; text stays text in an SVG, and is never read as a formula.

    Raises:
        ConfigError: the runs are not those that it needs.
    """
    from matplotlib import rc_context

    records = finished(outputs)
    where = outputs[0].folder if len(outputs) == 1 else Path(figure.name)
    try:
        with rc_context({"svg.fonttype": "none", "text.parse_math": False, "font.family": "sans-serif"}):
            drawn(where, lambda: figure.draw(records, path))
    except ConfigError as error:
        raise ConfigError(f"{error}", where=f"figure {figure.name}", todo=f"It needs {figure.needs}") from error

"""`morphogen figure`: a figure of a paper from runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError
from ..report.figures.catalogue import FIGURES, draw_figure, figure_named
from ..report.outputs import read_output
from .command import Command

SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class FigureConfig:
    """A figure of a paper from runs.

    Attributes:
        figure: its name, then output folders of `morphogen train` and `morphogen compare`; without any, all are listed.
        output: a PNG, SVG or PDF file; by default the figure's name, here.
    """

    figure: list[str] = field(default_factory=list)
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.output is not None and self.output.suffix not in SUFFIXES:
            raise ConfigError("not a picture's name", where="output", expected="NAME.png", found=f"{self.output}")
        if len(self.figure) == 1:
            figure = figure_named(self.figure[0])
            raise ConfigError("no runs are given", where=figure.name, expected=f"output folders: {figure.needs}")


def run_figure(config: FigureConfig) -> int:
    """Draw a figure of the papers from runs' ledgers; without a name, list them and what each needs."""
    if not config.figure:
        for each in FIGURES.values():
            print(f"{each.name:20} {each.title}\n{'':20} from {each.needs}")
        return 0
    name, *runs = config.figure
    figure = figure_named(name)
    path = config.output or Path(f"{name.replace('/', '-')}.png")
    outputs = [read_output(Path(run)) for run in runs]
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_figure(figure, outputs, path)
    print(f"{path}: {figure.title}")
    return 0


FIGURE = Command(
    "figure",
    FigureConfig,
    run_figure,
    """examples:
  morphogen figure
  morphogen figure network-expansion/6 runs/operators
  morphogen figure autoprog/1 runs/vit_tiny runs/vit_small runs/vit_base --output sizes.svg""",
    first=("figure", "name of a figure, and output folders of `morphogen train` and `morphogen compare`"),
    many=True,
    from_file=False,
)

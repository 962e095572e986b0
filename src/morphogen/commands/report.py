"""`morphogen report`: what runs came to, as one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..machine.files import write_text
from ..report.outputs import read_output
from ..report.page.page import report
from .command import Command
from .terminal import told_file


@dataclass(frozen=True)
class ReportConfig:
    """One page of what runs came to.

    Attributes:
        runs: output folders of `morphogen train` and `morphogen compare`.
        output: the page; one that is there is replaced.
    """

    runs: list[str]
    output: Path = Path("report.html")

    def __post_init__(self) -> None:
        if self.output.suffix not in (".html", ".htm"):
            raise ConfigError("not a page's name", where="output", expected="NAME.html", found=f"{self.output}")


def run_report(config: ReportConfig) -> int:
    """Write one HTML page of runs: accuracy against cost, the network's shape over time, searches, sparsity."""
    page = report([read_output(Path(run)) for run in config.runs])
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(config.output, page)
    print(f"{told_file(config.output)}; it needs no network and no script")
    return 0


REPORT = Command(
    "report",
    ReportConfig,
    run_report,
    """examples:
  morphogen report runs/train
  morphogen report runs/compare runs/fronts --output study.html""",
    first=("runs", "output folders of `morphogen train` and `morphogen compare`"),
    needs_first=True,
    many=True,
    from_file=False,
)

"""Where a command writes: the console, progress, and a table that several commands print."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..machine.ranks import rank
from ..report.render import as_table
from ..report.savings.rows import saving_rows

QUIET = 10.0
"""Seconds without a line, at least, where progress goes to a file: one that grows by the second is not read."""


WIDE = 140
"""Characters that a table may take where it is printed to no terminal."""


def console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDE)


def tell_savings(records: Sequence[dict[str, Any]]) -> None:
    """A table of what pruning saved, where a run pruned."""
    rows = saving_rows(records)
    if rows:
        console().print(as_table(rows, "what pruning left, in % of the dense network", narrow=True))


def told_file(path: Path) -> str:
    """A file that was written, and its size."""
    size = path.stat().st_size
    return f"{path}, {size / 1e6:.1f} MB" if size >= 1e6 else f"{path}, {size / 1e3:.0f} kB"


@contextmanager
def measuring() -> Iterator[Callable[[int, int], None]]:
    """A bar while sub-networks are measured, a line now and then without a terminal; gives what to tell how many are
    measured, and how many there will be."""
    err = Console(stderr=True)
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    told = float("-inf")

    def line(done: int, total: int) -> None:
        nonlocal told
        if total and time.monotonic() - told > QUIET:  # it is not known before the schedules are read
            told = time.monotonic()
            print(f"measuring: {done} of {total} sub-networks", file=sys.stderr, flush=True)

    if not err.is_terminal:
        yield line
        return
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("measuring", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class EpochProgress:
    """A progress bar for each run; where there is no terminal, a line when it begins, one after its first epoch, and
    then every few seconds."""

    def __init__(self, metric: str):
        """`metric` is what the figures are of, in percent."""
        self.metric = metric

    def __enter__(self):
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[accuracy]:.2f} %"),
        )
        self.progress = Progress(*columns, console=self.console, disable=rank() > 0 or not self.console.is_terminal)
        self.progress.start()
        self.tasks, self.told, self.first = {}, time.monotonic(), set()
        return self.tell

    def tell(self, label: str, done: int, total: int, accuracy: float | None) -> None:
        """An epoch of a run is over, or the run begins: then there is no accuracy."""
        if label not in self.tasks:
            self.tasks[label] = self.progress.add_task(label, total=total, accuracy=0.0)
        if accuracy is None:
            self._say(f"{label}: {total - done} epochs to go")
            return
        if label not in self.first or time.monotonic() - self.told > QUIET:
            self._say(f"{label}: epoch {done} of {total} is over, {self.metric} {accuracy:.2f} %")
            self.first.add(label)
            self.told = time.monotonic()
        self.progress.update(self.tasks[label], completed=done, accuracy=accuracy)

    def _say(self, line: str) -> None:
        if self.progress.disable and rank() == 0:
            print(line, flush=True)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

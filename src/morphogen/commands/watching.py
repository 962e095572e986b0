"""Training one can watch: a live table where there is a terminal, else a line an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..dense.subnet import SubNetwork
from ..machine.ranks import rank
from ..plan.show import duration
from ..report.ledger import Epoch
from ..report.training import extent_of
from ..train.loop import Run
from ..train.progress import epochs_left, flop_share

FEW = 100
"""Steps of a whole run below which a network learns next to nothing, unless it begins with learnt weights."""

SHOWN = 12
"""Epochs of the live table; earlier ones scroll out of it."""


class Watching:
    """Tells of one run: after every epoch its figures, and what the network was and is where it changed its size.

    Used as a context manager, which gives the function to call after each epoch. Of several ranks the first tells.
    """

    def __init__(self, run: Run, console: Console | None = None):
        """`console` is by default standard error where that is a terminal, and standard output where it is not."""
        self._run = run
        err = Console(stderr=True)
        self._console = console or (err if err.is_terminal else Console(soft_wrap=True, highlight=False))
        self._rows: list[dict[str, str] | str] = []
        self._morphs, self._images = len(run.ledger.morphs), run.ledger.samples
        self._began, self._stepped = time.monotonic(), self._stepping
        self._over = False
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=2)

    @property
    def _is_live(self) -> bool:
        return self._console.is_terminal

    @property
    def _stepping(self) -> float:
        """Seconds of steps, and of waiting for their images."""
        return sum(self._run.ledger.seconds[cause] for cause in ("step", "data", "compile"))

    def __enter__(self) -> Callable[[Epoch], None]:
        run = self._run
        if rank():
            return lambda _: None
        left = run.total_epochs - len(run.ledger.epochs)
        self._say(
            f"{run.recipe.model} on {run.data.name}: {left} epochs of {run.data.steps} steps to go, "
            f"network at {self._now()}{self._next()}"
        )
        if (steps := run.total_epochs * run.data.steps) < FEW and not run.recipe.pretrained:
            self._say(
                f"{steps} steps in all are few to learn in: a smaller --batch_size or more --epochs gives more, "
                "--pretrained begins with learnt weights"
            )
        if self._is_live:
            self._live.start()
        return self.tell

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._over = kind is None
        if self._live.is_started:
            self._live.stop()

    def tell(self, epoch: Epoch) -> None:
        """An epoch is over."""
        now, stepping = time.monotonic(), self._stepping
        seconds, steps = now - self._began, stepping - self._stepped
        self._began, self._stepped = now, stepping
        for morph in self._run.ledger.morphs[self._morphs :]:
            self._say(
                f"epoch {morph.epoch + 1}: {self._change(morph.epoch)}; {self._run.ledger.metric} "
                f"{morph.accuracy_before:.2f} % before, {morph.accuracy_after:.2f} % right after, "
                f"in {morph.seconds:.1f} s"
            )
        self._morphs = len(self._run.ledger.morphs)
        row = self._row(epoch, seconds, steps)
        self._rows.append(row)
        if not self._is_live:
            number, loss, score, size, flops, rate, speed, left = row.values()
            self._console.print(
                f"epoch {number.replace('/', ' of ')}: loss {loss}, {self._run.ledger.metric} {score} %, size {size}, "
                f"FLOPs {flops}, lr {rate}, {speed} images/s, {left} left"
            )

    def _say(self, line: str) -> None:
        self._rows.append(line)
        if not self._is_live:
            self._console.print(line)

    def _row(self, epoch: Epoch, seconds: float, steps: float) -> dict[str, str]:
        run = self._run
        images, self._images = run.ledger.samples - self._images, run.ledger.samples
        return {
            "epoch": f"{epoch.epoch + 1}/{run.total_epochs}",
            "loss": f"{epoch.loss:.4f}",
            f"{run.ledger.metric} %": f"{epoch.accuracy:.2f}",
            "size": self._now(),
            "FLOPs": f"{flop_share(run):.2f}",
            "lr": f"{run.optimizer.param_groups[0]['lr']:.3g}",
            "images/s": f"{images / max(steps, 1e-9):,.0f}",
            # Steps follow the size of the network; tests, data and what is done once an epoch do not.
            "left": duration(
                steps * epochs_left(run, epoch.epoch + 1) + (seconds - steps) * (run.total_epochs - epoch.epoch - 1)
            ),
        }

    def _now(self) -> str:
        return self._extent(self._run.attached.network.current)

    def _next(self) -> str:
        """What the network will be, and when."""
        attached = self._run.attached
        following = next((stage for stage in attached.stages if stage.start > max(0, attached.epoch)), None)
        if following is None:
            return ""
        what = "what its search chooses" if following.candidates else self._extent(following.subnetwork)
        return f", {what} from epoch {following.start + 1}"

    def _change(self, epoch: int) -> str:
        """What the network was before the morph of an epoch, and what it is."""
        at = [number for number, (start, _) in enumerate(self._run.attached.history) if start <= epoch][-1]
        history = self._run.attached.history
        return f"{self._extent(history[max(0, at - 1)][1])} -> {self._extent(history[at][1])}"

    def _extent(self, part: SubNetwork) -> str:
        return extent_of(part, self._run.attached.network.dense)

    def _table(self) -> Group:
        """The last epochs, and where the one at work is."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        rows = [row for row in self._rows if isinstance(row, dict)][-SHOWN:]
        for name in rows[-1] if rows else ():
            table.add_column(name, justify="right", overflow="fold")
        for row in rows:
            table.add_row(*row.values())
        epoch, step, steps = self._run.position
        at_work = f"epoch {epoch + 1}: step {step} of {steps}; network at {self._now()}{self._next()}"
        state = [] if self._over else [Text(at_work, style="dim")]
        said = [Text(row) for row in self._rows if isinstance(row, str)][-SHOWN:]
        return Group(*said, *([table] if rows else []), *state)

"""Other places to follow a run: TensorBoard and Weights & Biases, with every morph as an event."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError
from ..report.ledger import Ledger


class Writer(Protocol):
    """A place for figures."""

    def write(self, epoch: int, figures: dict[str, float], event: str) -> None:
        """Figures of an epoch, and what happened at its beginning (nothing, mostly)."""
        ...


class Trackers:
    """Writes what a ledger holds, epoch by epoch."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = writers

    def follow(self, ledger: Ledger) -> None:
        """Write the last epoch, with the morphs that began it."""
        self._write(ledger, ledger.epochs[-1].epoch)

    def end(self, ledger: Ledger) -> None:
        """Write what a method took out when training was over, where it did."""
        epoch = ledger.epochs[-1].epoch + 1
        if any(morph.epoch == epoch for morph in ledger.morphs):
            self._write(ledger, epoch)

    def _write(self, ledger: Ledger, epoch: int) -> None:
        last, stage = ledger.epochs[-1], ledger.stages[-1]
        figures = {
            "loss": last.loss,
            ledger.metric: last.accuracy,
            **last.figures,
            "training seconds": last.seconds,
            "parameters": float(stage.parameters),
            "training FLOPs of an image": stage.training_flops / stage.batch_size,
            "images of a step": float(stage.batch_size),
        }
        events = []
        for morph in (morph for morph in ledger.morphs if morph.epoch == epoch):
            figures |= {
                f"morph/{ledger.metric} before": morph.accuracy_before,
                f"morph/{ledger.metric} after": morph.accuracy_after,
                "morph/seconds": morph.seconds,
            }
            size = "" if stage.resolution is None else f" at {stage.resolution[0]} x {stage.resolution[1]}"
            events.append(
                f"epoch {morph.epoch}: {stage.parameters:,} parameters{size}, "
                f"{ledger.metric} {morph.accuracy_before:.2f} % before and {morph.accuracy_after:.2f} % right after"
            )
        for writer in self._writers:
            writer.write(epoch, figures, "; ".join(events))


@contextmanager
def tracking(names: Sequence[str], folder: Path, ledger: Ledger, settings: dict[str, Any]) -> Iterator[Trackers]:
    """Open trackers by name.

    Args:
        names: `tensorboard`, `wandb`, both or none.
        folder: of the run, where they write.
        ledger: of the run as it begins, or goes on.
        settings: of the run.

    Raises:
        ConfigError: a package is missing.
    """
    with ExitStack() as opened:
        writers = [opened.enter_context(WRITERS[name](folder, len(ledger.epochs), settings)) for name in names]
        yield Trackers(writers)


class TensorBoard:
    """Writes to `FOLDER/tensorboard`."""

    def __init__(self, folder: Path, epoch: int, settings: dict[str, Any]):
        """What was written of `epoch` and later ones is of a run that was cut off."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epoch)
        self._writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, epoch: int, figures: dict[str, float], event: str) -> None:
        """See `Writer`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        if event:
            self._writer.add_text("morph", event, epoch)
        self._writer.flush()


class WandB:
    """Writes to `FOLDER/wandb`, and sends nothing unless WANDB_MODE is `online`."""

    def __init__(self, folder: Path, epoch: int, settings: dict[str, Any]):
        """A run that goes on is another run of the same group there."""
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        self._run = wandb.init(
            project="morphogen",
            group=folder.name,
            dir=str(folder),
            config={**settings, "first epoch": epoch},
            mode="online" if os.environ.get("WANDB_MODE") == "online" else "offline",
            settings=wandb.Settings(silent=True),
        )

    def __enter__(self) -> WandB:
        return self

    def __exit__(self, *_: object) -> None:
        self._run.finish()

    def write(self, epoch: int, figures: dict[str, float], event: str) -> None:
        """See `Writer`."""
        self._run.log({**figures, **({"morph": event} if event else {})}, step=epoch)


WRITERS = {"tensorboard": TensorBoard, "wandb": WandB}


def _missing(name: str) -> ConfigError:
    return ConfigError(
        "the package is not installed", where=f"track, {name}", todo="pip install 'morphogen[track]', or leave it out"
    )

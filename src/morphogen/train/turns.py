"""Runs that take turns after every epoch, the one furthest behind first, so that a noisy machine hits all alike."""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, ConfigError, MorphogenError, TrainingError
from ..methods import build_method
from ..report.ledger import Epoch
from ..report.records import Record, by_file_name
from .checkpoint import Checkpoints, Stopped, listening
from .config import CompareConfig
from .data import Data
from .finished import Finished, Key
from .loop import Run

Progress = Callable[[str, int, int, float | None], None]
"""Told after every epoch, and when a run begins: its name, epochs done, epochs in all, and the epoch's accuracy; None
at the beginning."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Attributes:
        label: its method, in tables.
        method: its method, as `build_method` reads it.
        seed: of the run.
        steps: its length.
        budget: the same as a share of the method's full length; 1 for a run that is not one of several lengths.
    """

    label: str
    method: str
    seed: int
    steps: int
    budget: float = 1.0

    def __str__(self) -> str:
        """For messages."""
        length = f", {self.budget:g} of the length" if self.budget != 1 else ""
        return f"{self.label}, seed {self.seed}{length}"

    @property
    def key(self) -> Key:
        """What its record is known by."""
        return self.label, self.budget, self.seed


class Resumable:
    """A run of a comparison that keeps checkpoints in the output folder, and goes on from them.

    Attributes:
        checkpoints: its own.
        timed_apart: whether others ran beside it, now or when it was begun.
    """

    def __init__(self, planned: PlannedRun, config: CompareConfig, *, alone: bool = True):
        self.planned, self.config = planned, config
        self.folder = (
            Path(config.output) / "checkpoints" / by_file_name(f"{planned.label} {planned.budget:g} {planned.seed}")
        )
        self.checkpoints = Checkpoints(self.folder)
        mark = self.folder / "timed_apart"
        if not alone:
            self.folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        self.timed_apart = mark.exists()

    def begin(self, data: Data) -> Iterator[Epoch]:
        """Build it, bring it to its latest checkpoint, and give its epochs, as `Run.epochs` does.

        Raises:
            MorphogenError: settings, model, data and method that do not fit; a checkpoint of another recipe.
        """
        planned = self.planned
        method = build_method(planned.method)
        try:
            self.run = Run(self.config, data, method, planned.label, planned.seed, planned.steps, self.checkpoints)
        except ConfigError as error:
            if planned.budget == 1 or planned.method != "Dense":  # where a method is left out, the run is named
                raise
            raise ConfigError(f"{error}", where=f"{planned}") from error
        if (state := self.checkpoints.latest()) is not None:
            self.run.load_state_dict(state)
        return self.run.epochs()

    @property
    def share_done(self) -> float:
        """Of its epochs, once it is begun."""
        return len(self.run.ledger.epochs) / self.run.total_epochs

    def record(self) -> Record:
        """Of the finished run."""
        record = self.run.ledger.record() | {"budget": self.planned.budget}
        return record | {"timed_apart": True} if self.timed_apart else record

    def clear(self) -> None:
        """Remove the checkpoints of a run that has been recorded."""
        shutil.rmtree(self.folder, ignore_errors=True)


def left_out(what: str, error: MorphogenError) -> str:
    """Warn that a method does not fit; gives what to say of it at the end."""
    said = f"left out, {what}: {error}"
    warnings.warn(said, stacklevel=3)
    return said


def unfinished(plans: Sequence[PlannedRun], config: CompareConfig, finished: Finished) -> list[PlannedRun]:
    """Those without a record; of the others the checkpoints go, which a kill may have left."""
    for planned in plans:
        if planned.key in finished.records:
            Resumable(planned, config).clear()
    return [planned for planned in plans if planned.key not in finished.records]


def in_turn(
    plans: Sequence[PlannedRun], config: CompareConfig, data: Data, finished: Finished, progress: Progress
) -> list[str]:
    """One epoch after the other, of the run that has done the smallest share of its own, until all are over.

    Returns what went wrong with any, also that a method does not fit. Of several lengths it then trains at none: a
    front without one of its lengths tells nothing.

    Raises:
        MorphogenError: the dense run cannot begin, or that of no method.
        Stopped: asked to; every run that had begun has saved a checkpoint.
    """
    runs = [Resumable(planned, config) for planned in plans]
    going = list[tuple[Resumable, Iterator[Epoch]]]()

    def ask(number: int) -> None:
        for run in runs:
            run.checkpoints.ask(number)

    failures, stopped, unfit = list[str](), list[Stopped](), set[str]()
    with listening(ask):
        for run in runs:
            if run.planned.label in unfit:
                continue
            try:
                going.append((run, run.begin(data)))
                progress(f"{run.planned}", len(run.run.ledger.epochs), run.run.total_epochs, None)
            except CheckpointError:
                raise
            except MorphogenError as error:
                if run.planned.method == "Dense":
                    raise
                failures.append(left_out(str(run.planned), error))
                unfit.add(run.planned.label)
        runs[:] = [run for run in runs if run.planned.label not in unfit]
        going = [(run, epochs) for run, epochs in going if run.planned.label not in unfit]
        if failures and all(run.planned.method == "Dense" for run in runs):
            raise TrainingError("; ".join(failures))  # nothing to compare with
        while going:
            turn = min(going, key=lambda each: each[0].share_done)  # also of different lengths, side by side to the end
            if _turn(*turn, finished, failures, stopped, progress):
                going.remove(turn)
                runs.remove(turn[0])
                del turn
                gc.collect()  # a network and its hooks hold each other, and a GPU's memory
    if stopped:
        number = stopped[0].signal
        raise Stopped(number, f"{len(finished.records)} runs are finished, {len(stopped)} are saved in the middle")
    return failures


def _turn(
    run: Resumable,
    epochs: Iterator[Epoch],
    finished: Finished,
    failures: list[str],
    stopped: list[Stopped],
    progress: Progress,
) -> bool:
    """An epoch of a run; whether it is over, by its end or otherwise."""
    try:
        epoch = next(epochs, None)
    except MorphogenError as error:
        failures.append(f"{run.planned}, {error}")
        return True
    except Stopped as error:
        stopped.append(error)
        return True
    if epoch is None:
        finished.append(run.record())
        run.clear()
        return True
    progress(f"{run.planned}", epoch.epoch + 1, run.run.total_epochs, epoch.accuracy)
    return False

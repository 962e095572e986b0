"""Methods beside the dense network: the same loop, seeds and clock, epoch by epoch in turn."""

from __future__ import annotations

from ..methods import build_method
from ..plan.predict import realised
from ..report.records import Record
from .config import CompareConfig
from .data import Data
from .finished import Finished
from .sources import load_data
from .turns import PlannedRun, Progress, in_turn, unfinished


def compare(
    config: CompareConfig, progress: Progress = lambda *_: None, *, in_time: bool = True
) -> tuple[list[Record], list[str]]:
    """Train dense and every method (stretched by `config.stretch`) with every seed, and for each method a dense run of
    the method's own time, unless `in_time` is false.

    Methods of the same FLOPs, or of times within 5 %, share that run. The runs of one seed take turns after every
    epoch, so that a noisy machine hits all alike. Finished runs are appended to `runs.jsonl` in the output folder at
    once and not run again when the comparison is started anew with the same recipe; others go on from checkpoints.

    Returns:
        One record a run, with `speedup`, `flop_speedup` and `realised` against the dense run of its seed; and
        what stopped those that did not finish, which does not stop the others.

    Raises:
        MorphogenError: settings, model, data and methods that do not fit.
        Stopped: asked to.
    """
    labels = ["Dense", *config.methods]
    for label in labels:
        build_method(label)
    data = load_data(config)
    finished = Finished(config, data)
    failures: list[str] = []
    for seed in config.all_seeds:
        plans = [PlannedRun(label, label, seed, config.epochs_of(label) * data.steps) for label in labels]
        failures += in_turn(unfinished(plans, config, finished), config, data, finished, progress)
        timed = _timed(config.methods, finished, seed) if in_time else []
        short = [_in_time_of(label, seed, config, data, finished) for label in timed]
        for planned in short:
            if planned is not None:
                failures += in_turn([planned], config, data, finished, progress)
    return _compared(finished, config), failures


def _timed(labels: list[str], finished: Finished, seed: int) -> list[str]:
    """The methods whose time a dense run must fit: one of those of the same FLOPs, or of times within 5 %."""
    chosen: dict[str, tuple[float, int]] = {}
    for label in labels if ("Dense", 1.0, seed) in finished.records else []:
        if (label, 1.0, seed) in finished.records:
            seconds, flops = (finished.records[label, 1.0, seed][key] for key in ("training_seconds", "flops"))
            if not any(flops == theirs or abs(seconds / other - 1) < 0.05 for other, theirs in chosen.values()):
                chosen[label] = seconds, flops
    return list(chosen)


def _in_time_of(label: str, seed: int, config: CompareConfig, data: Data, finished: Finished) -> PlannedRun | None:
    """A dense run shortened so that it takes as long as a method did; none where the method took longer than dense,
    or where it is there."""
    dense, method = finished.records["Dense", 1.0, seed], finished.records[label, 1.0, seed]
    share = method["training_seconds"] / dense["training_seconds"]
    planned = PlannedRun(in_time_of(label), "Dense", seed, max(1, round(share * config.epochs * data.steps)))
    return None if planned.key in finished.records or share >= 1 else planned


def in_time_of(label: str) -> str:
    """The label of the dense run with the time budget of a method."""
    return f"Dense in the time of {label}"


def _compared(finished: Finished, config: CompareConfig) -> list[Record]:
    """All records of this comparison in the order of the table, speedups added."""
    labels = ["Dense"]
    for label in config.methods:
        labels += [label, in_time_of(label)]
    found = finished.records
    return [
        {**found[label, 1.0, seed], **speedups(found[label, 1.0, seed], found["Dense", 1.0, seed])}
        for label in labels
        for seed in config.all_seeds
        if (label, 1.0, seed) in found and ("Dense", 1.0, seed) in found
    ]


def speedups(record: Record, dense: Record) -> dict[str, float | None]:
    """Speedup in time and in FLOPs, and the share of the saved FLOPs that became saved time.

    See `realised`, which is None where no FLOPs were saved.
    """
    time = dense["training_seconds"] / record["training_seconds"]
    flops = dense["flops"] / record["flops"]
    return {"speedup": time, "flop_speedup": flops, "realised": realised(time, flops)}

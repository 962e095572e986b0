"""From the time of steps to the time of a run: arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """What a method would save.

    Attributes:
        speedup: time of dense training by the method's.
        flop_speedup: the same in FLOPs.
        realised: (speedup - 1) / (FLOP speedup - 1); None where no FLOPs are saved.
        seconds: training time of the run, evaluation left out; None where its number of steps is not known.
        dense_seconds: the same of dense training.
        overhead: seconds of it for tracing and morphs; None where the number of steps is not known.
    """

    speedup: float
    flop_speedup: float
    realised: float | None
    seconds: float | None
    dense_seconds: float | None
    overhead: float | None


@dataclass(frozen=True)
class Part:
    """A span of training: epochs, seconds of a step (data included) and FLOPs of a step."""

    epochs: int
    seconds: float
    flops: float


def predict(
    parts: Sequence[Part], dense: Part, steps_per_epoch: float | None, overhead: float, dense_overhead: float
) -> Prediction:
    """Add up a run.

    Args:
        parts: its stages.
        dense: dense training of the same epochs.
        steps_per_epoch: None where it is not known; overheads are then left out of the speedup.
        overhead: seconds besides the steps: tracing and morphs.
        dense_overhead: the same of dense training.
    """
    ours, theirs = _total(parts, "seconds"), _total([dense], "seconds")
    flop_speedup = _total([dense], "flops") / _total(parts, "flops")
    if steps_per_epoch is not None:
        ours, theirs = ours * steps_per_epoch + overhead, theirs * steps_per_epoch + dense_overhead
    speedup = theirs / ours
    known = steps_per_epoch is not None
    return Prediction(
        speedup,
        flop_speedup,
        realised(speedup, flop_speedup),
        ours if known else None,
        theirs if known else None,
        overhead if known else None,
    )


def realised(speedup: float, flop_speedup: float) -> float | None:
    """The share of the saved FLOPs that became saved time; None where no FLOPs were saved."""
    return (speedup - 1) / (flop_speedup - 1) if flop_speedup > 1.001 else None


def step_with_data(step: float, data: float, overlapped: bool) -> float:
    """Seconds of a step and the wait for its batch: the longer of both where other processes make batches meanwhile."""
    return max(step, data) if overlapped else step + data


def _total(parts: Sequence[Part], what: str) -> float:
    return sum(part.epochs * getattr(part, what) for part in parts)

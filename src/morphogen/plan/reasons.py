"""Why a stage's time would not follow its FLOPs: from measurements to sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .operations import Operations

GAP = 1.1
"""Time lags behind the FLOPs where its share of dense is more than this many times theirs."""

FIXED = 0.75
"""Share of a step's forward and backward time that half the batch still takes in a launch-bound network: between a
half, where time follows the work, and 1, where it does not at all."""

UPDATE = 0.15
"""Share of a step from which on the update of the weights counts as a reason."""

FREE = 0.2
"""Share of a pass from which on operations without FLOPs count as a reason."""


@dataclass(frozen=True)
class Rounded:
    """The same sub-network with its channels rounded up: its step time, the most that may be, and its FLOPs, all by the
    sub-network's own."""

    multiple_of: int
    time: float
    most: float
    flops: float


@dataclass(frozen=True)
class Findings:
    """What was measured of a stage.

    Attributes:
        time_share, flop_share: of the dense network.
        least: what the time's share is at least; a reason is only given where that is more than the FLOPs'.
        half: step time at half the batch by the step time; None for a batch that cannot be halved.
        update: share of the step that the optimizer and averages take.
        operations, dense_operations: where the time of a pass goes, and where the dense network's.
        images_per_second: that the steps alone would consume.
        loader: images a second that the data layer alone delivers; None without data.
        rounded: the sub-network with other numbers of channels.
    """

    time_share: float
    least: float
    flop_share: float
    half: float | None
    update: float
    operations: Operations
    dense_operations: Operations
    images_per_second: float
    loader: float | None = None
    rounded: Sequence[Rounded] = ()


def reasons(found: Findings) -> tuple[str, ...]:
    """One sentence for each cause that the measurements show; none where time follows the FLOPs."""
    told = [*_loader(found), *_channels(found)]
    if found.least > GAP * found.flop_share:
        causes = [*_launches(found), *_update(found), *_operations(found)]
        if not causes and not told:
            causes = [
                f"no cause found: time is {found.time_share:.2f} of dense, FLOPs {found.flop_share:.2f}; launches, the "
                "update, channel counts and single operations do not explain it"
            ]
        told += causes
    return tuple(told)


def _loader(found: Findings) -> list[str]:
    if found.loader is None or found.loader >= found.images_per_second:
        return []
    return [
        f"loader-bound: the data layer alone delivers {found.loader:,.0f} images/s, the steps would take "
        f"{found.images_per_second:,.0f}"
    ]


def _channels(found: Findings) -> list[str]:
    """A larger network that takes no longer."""
    best = min(found.rounded, key=lambda other: other.time, default=None)
    if best is None or best.most >= 1:
        return []
    return [
        f"odd channel counts: rounded up to multiples of {best.multiple_of}, a step takes {best.time:.2f} of the time "
        f"with {best.flops:.2f} of the FLOPs"
    ]


def _launches(found: Findings) -> list[str]:
    if found.half is None:
        return []
    half = (found.half - found.update) / (1 - found.update)  # the update does not depend on the batch
    if half <= FIXED:
        return []
    return [f"launch-bound: with half the batch, forward and backward pass still take {half:.0%} of the time"]


def _update(found: Findings) -> list[str]:
    if found.update < UPDATE:
        return []
    return [f"update-bound: the update of the weights is {found.update:.0%} of a step, whatever the batch and input"]


def _operations(found: Findings) -> list[str]:
    """What shrinks less than the FLOPs, and what runs at fewer FLOPs a second."""
    told = []
    free, dense_free = 1 - found.operations.counted, 1 - found.dense_operations.counted
    left = free * found.time_share / dense_free if dense_free else 0.0
    if free > FREE and left > GAP * found.flop_share:
        names = ", ".join(found.operations.others)
        shrink = f"shrink only to {left:.2f} of dense" if left < 1 else f"do not shrink ({left:.2f} of dense)"
        told.append(f"operations without FLOPs ({names} ...) take {free:.0%} of a pass and {shrink}")
    counted = found.operations.counted * found.time_share
    if counted:
        rate = found.flop_share * found.dense_operations.counted / counted
        if rate < 1 / GAP:
            told.append(f"convolutions and matrix products run at {rate:.2f} of the dense network's FLOPs a second")
    return told

"""Why a stage's time would not follow its FLOPs: from measurements to sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP = 1.1
"""Time lags behind the FLOPs where its share of dense is more than this many times theirs."""

FIXED = 0.75
"""Share of a step's forward and backward time that half the batch still takes in a launch-bound network: between a
half, where time follows the work, and 1, where it does not at all."""

UPDATE = 0.15
"""Share of a step from which on the update of the weights counts as a reason."""


@dataclass(frozen=True)
class Rounded:
    """The same sub-network with its channels rounded up: its step time and FLOPs by those of the sub-network."""

    multiple_of: int
    time: float
    flops: float


@dataclass(frozen=True)
class Findings:
    """What was measured of a stage.

    Attributes:
        time_share, flop_share, activation_share: of the dense network: step time, FLOPs, and bytes that the forward
            pass leaves for the backward pass.
        half: step time at half the batch by the step time; None for a batch that cannot be halved.
        update: share of the step that the optimizer and averages take.
        images_per_second: that the steps alone would consume.
        loader: images a second that the data layer alone delivers; None without data.
        rounded: the sub-network with other numbers of channels.
    """

    time_share: float
    flop_share: float
    activation_share: float
    half: float | None
    update: float
    images_per_second: float
    loader: float | None = None
    rounded: Sequence[Rounded] = ()


def reasons(found: Findings) -> tuple[str, ...]:
    """One sentence for each cause that the measurements show; none where time follows the FLOPs."""
    told = [*_loader(found), *_channels(found)]
    if found.time_share > GAP * found.flop_share:
        causes = [*_launches(found), *_update(found)]
        causes = causes or list(_activations(found))
        if not causes and not told:
            causes = [
                f"no cause found: time is {found.time_share:.2f} of dense, FLOPs {found.flop_share:.2f}, and it is "
                "neither launches, activations, the update nor odd channel counts"
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
    if best is None or best.time >= 1:
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


def _activations(found: Findings) -> list[str]:
    """Time that is nearer to the memory traffic than to the arithmetic."""
    nearer = abs(found.activation_share - found.time_share) < abs(found.flop_share - found.time_share)
    if not nearer:
        return []
    return [
        f"memory-bound: activations are {found.activation_share:.2f} of dense, FLOPs {found.flop_share:.2f}, and the "
        f"time, {found.time_share:.2f}, goes with the activations"
    ]

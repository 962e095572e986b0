"""At which multiple the channel counts of a network that is pruned should stay on this device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import ConfigError
from .channels import MULTIPLES, rounded_up

SHARES = (0.75, 0.5, 0.25)
"""Of the channels, that pruning is taken to leave."""

SPREAD = 0.2
"""How far what is left of one group may be from the share, as a part of it: pruning takes more here than there."""

SLACK = 1.02
"""Multiples whose time is at most this many times the best count as equal: larger ones keep more weights."""


@dataclass(frozen=True)
class PrunedCost:
    """What a step of one pruned network costs.

    Attributes:
        share: of every group's channels, about which so many were left.
        multiple_of: what their counts were then rounded up to; 1 where they are as they were.
        flop_share, time_share: of a step of the dense network.
    """

    share: float
    multiple_of: int
    flop_share: float
    time_share: float


@dataclass(frozen=True)
class Widths:
    """Pruned networks measured, and what follows.

    Attributes:
        costs: by share and multiple; as many of one multiple as of another.
        multiple_of: the recommended one.
        recommendation: a sentence that says so, and why.
    """

    costs: tuple[PrunedCost, ...]
    multiple_of: int
    recommendation: str


def pruned(network: Network, share: float) -> SubNetwork:
    """A sub-network with irregular channel counts, such as pruning leaves; the same on every call.

    Args:
        network: of which a part is wanted; its blocks and resolution stay those of the dense one.
        share: of every group's units, about which so many stay (see `SPREAD`), in (0, 1 / (1 + SPREAD)].

    Raises:
        ConfigError: no channel of the network can go.
    """
    if not network.groups:
        raise ConfigError(
            "nothing of this model can be pruned",
            expected="a convolution or linear layer whose channels can change",
            todo="`morphogen inspect` says what is pinned and why",
        )
    random = Random(str(share))
    counts = {group.name: group.size * share * random.uniform(1 - SPREAD, 1 + SPREAD) for group in network.groups}
    # Which units stay does not matter to a step's time, so they are the first. Named one by one, as groups may
    # change beside an op without a rule, where a width for all may not.
    return network.subnetwork(alive={name: range(max(1, round(count))) for name, count in counts.items()})


def pruned_networks(network: Network) -> dict[tuple[float, int], SubNetwork]:
    """The sub-networks to measure, by share and multiple; a multiple that changes nothing gives the same again.

    Raises:
        ConfigError: no channel of the network can go.
    """
    irregular = {share: pruned(network, share) for share in SHARES}
    return {
        (share, multiple): rounded_up(network, part, multiple)
        for share, part in irregular.items()
        for multiple in (1, *MULTIPLES)
    }


def recommend(costs: Sequence[PrunedCost]) -> Widths:
    """The smallest multiple whose time over all shares is about that of the best.

    Args:
        costs: for every multiple, 1 among them, of the same shares.
    """
    times = totals(costs, "time_share")
    best = min(multiple for multiple, time in times.items() if time <= SLACK * min(times.values()))
    if best == 1:
        why = f"rounding channel counts up saves no more than {SLACK - 1:.0%} of the step time of pruned networks"
    else:
        flops = totals(costs, "flop_share")
        why = (
            f"steps of pruned networks take {times[best] / times[1]:.2f} of the time that they take with irregular "
            f"channel counts, with {flops[best] / flops[1]:.2f} of the FLOPs"
        )
    return Widths(tuple(costs), best, f"multiple_of={best}: {why}")


def totals(costs: Sequence[PrunedCost], what: str) -> dict[int, float]:
    """For each multiple the sum over the shares of one of the figures, `flop_share` or `time_share`."""
    sums: dict[int, float] = {}
    for cost in costs:
        sums[cost.multiple_of] = sums.get(cost.multiple_of, 0.0) + getattr(cost, what)
    return sums

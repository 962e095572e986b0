"""Pruning while the network is young: the channels that weigh least go in a few cuts, and what is left trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cost.flops import cost
from ..dense.network import Network
from ..errors import ConfigError
from ..parts import Narrow
from ..run.part import Part
from ..schedule.growth import growth
from ..schedule.linear import linear_ratios
from ..schedule.stages import Stage
from .method import Method

HALVINGS = 7
"""Of the interval in which the width that meets the target is looked for: to a share of 1 / 128."""


@dataclass(frozen=True)
class PruneEarly(Method):
    """Train the whole network for a few epochs, then cut it to a share of its FLOPs, and train what is left.

    Structured pruning in early training (You et al., Early-Bird Tickets, ICLR 2020; Shen et al., When to Prune?, CVPR
    2022): all layers lose the same share of their channels, those of the least norm, see `importance`. Nothing is
    penalised, so the loop needs no further call, and the sizes are known before the run.

    Attributes:
        target: the share of the dense network's FLOPs to be left, in (0, 1).
        start: the share of the run after which the first channels go, in (0, 1).
        stop: the share of the run after which the last ones have gone, in [start, 1).
        cuts: in how many steps of equal width.
        multiple_of: channel counts stay at multiples of this, as hardware likes them.

    Raises:
        ConfigError: a setting out of range.
    """

    target: float = 0.5
    start: float = 0.05
    stop: float = 0.35
    cuts: int = 4
    multiple_of: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.target < 1:
            raise ConfigError(
                "target out of range", where="PruneEarly", expected="0 < target < 1", found=f"{self.target}"
            )
        if not 0 < self.start <= self.stop < 1:
            raise ConfigError(
                "shares out of range",
                where="PruneEarly",
                expected="0 < start <= stop < 1",
                found=f"start {self.start}, stop {self.stop}",
            )
        if self.cuts < 1 or self.multiple_of < 1:
            raise ConfigError(
                "out of range",
                where="PruneEarly",
                expected="cuts and multiple_of at least 1",
                found=f"cuts {self.cuts}, multiple_of {self.multiple_of}",
            )

    def parts(self) -> Sequence[Part]:
        """Cuts of the width."""
        return [Narrow(self.schedule)]

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """The whole network for at least an epoch, then in equal steps of width to what the target allows.

        Two cuts that fall on one epoch are one.

        Raises:
            ConfigError: fewer than two epochs, no channels that can change, or a target that no width meets.
        """
        first, last = (min(epochs - 1, max(1, round(share * epochs))) for share in (self.start, self.stop))
        cuts = min(self.cuts, last - first + 1)
        starts = [first + round((last - first) * i / max(1, cuts - 1)) for i in range(cuts)]
        width = linear_ratios(self._width(network), cuts + 1)[::-1]
        return growth(network, [0, *starts], epochs, width=width, multiple_of=self.multiple_of, who="PruneEarly")

    def _width(self, network: Network) -> float:
        """The largest share of the channels, in steps of 1 / 2^HALVINGS, that leaves no more FLOPs than the target."""
        most = self.target * cost(network, network.dense).forward

        def meets(width: float) -> bool:
            return cost(network, network.subnetwork(width=width, multiple_of=self.multiple_of)).forward <= most

        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if meets(middle) else (low, middle)
        if low == 0:
            raise ConfigError(
                "no width of this model meets the target",
                where="PruneEarly",
                expected="a larger target, or a smaller multiple_of",
                found=f"target {self.target}, multiple_of {self.multiple_of}",
                todo="`morphogen inspect` says what is pinned and why",
            )
        return low

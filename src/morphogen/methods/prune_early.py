"""Pruning while the network is young: the channels that weigh least go at once, and what is left trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cost.flops import cost
from ..dense.network import Network
from ..errors import ConfigError
from ..parts import Narrow
from ..run.part import Part
from ..schedule.growth import growth
from ..schedule.stages import Stage
from .method import Method, check_growth

HALVINGS = 7
"""Of the interval in which the width that meets the target is looked for: to a share of 1 / 128."""


@dataclass(frozen=True)
class PruneEarly(Method):
    """Train the whole network for a few epochs, cut it to a share of its FLOPs, and train what is left.

    Structured pruning in early training (You et al., Early-Bird Tickets, ICLR 2020; Shen et al., When to Prune?, CVPR
    2022): all layers lose the same share of their channels, those of the least norm, see `importance`. Nothing is
    penalised, so the loop needs no further call, and the sizes are known before the run.

    Attributes:
        target: the share of the dense network's FLOPs to be left, in (0, 1).
        at: the share of the run after which the channels go, in (0, 1).
        multiple_of: channel counts stay at multiples of this, as hardware likes them.

    Raises:
        ConfigError: a setting out of range.
    """

    target: float = 0.5
    at: float = 0.15
    multiple_of: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, share in (("target", self.target), ("at", self.at)):
            if not 0 < share < 1:
                raise ConfigError(
                    f"{name} out of range", where="PruneEarly", expected=f"0 < {name} < 1", found=f"{share}"
                )
        check_growth("PruneEarly", 2, self.multiple_of)

    def parts(self) -> Sequence[Part]:
        """One cut of the width."""
        return [Narrow(self.schedule)]

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """The whole network for at least an epoch, then what the target allows.

        Raises:
            ConfigError: fewer than two epochs, no channels that can change, or a target that no width meets.
        """
        return growth(
            network,
            [0, max(1, min(epochs - 1, round(self.at * epochs)))],
            epochs,
            width=[1.0, self._width(network)],
            multiple_of=self.multiple_of,
            who="PruneEarly",
        )

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

"""One schedule that begins small, grows to the dense network, and prunes that: what neither paper has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ...morph.growth import GrowthOperator
from ...network import Network
from ...schedule.growth import growth
from ...schedule.linear import linear_ratios
from ...schedule.stages import Stage
from .prunetrain import PruneTrain


@dataclass(frozen=True)
class GrowThenPrune(PruneTrain):
    """Width grows in equal steps until `start`; from there on the group lasso is at work as in PruneTrain.

    Its coefficient is set on the first batch of the grown network.

    Attributes:
        start: the share of the run after which the network is whole and the penalty begins.
        width: share of every layer's channels in the first stage, in (0, 1].
        stages: number of stages of equal length before the whole network's.
        operator: the growth operator.

    The other settings are those of `PruneTrain`.

    Raises:
        ConfigError: a setting out of range.
        MorphError: an unknown operator.
    """

    start: float = 0.4
    width: float = 0.5
    stages: int = 2
    operator: str | GrowthOperator = "orthogonal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.width <= 1 or self.stages < 1:
            raise ConfigError(
                "out of range",
                where="GrowThenPrune",
                expected="0 < width <= 1, at least one stage",
                found=f"width {self.width}, stages {self.stages}",
            )
        self.check_operators()

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Equal steps of width until the penalty begins.

        Raises:
            ConfigError: a stage without an epoch, or a network without channels that can change.
        """
        width = linear_ratios(self.width, self.stages + 1)
        grown = round(self.start * epochs)
        starts = [-(-i * grown // self.stages) for i in range(self.stages + 1)]
        return growth(
            network,
            starts,
            epochs,
            width=width,
            multiple_of=self.multiple_of,
            who="GrowThenPrune",
        )

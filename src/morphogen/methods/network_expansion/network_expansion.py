"""Width growth of CNNs in equal stages (Network Expansion, sections 3.1 to 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ...morph.growth import GrowthOperator, named
from ...network import Network
from ...schedule.linear import equal_starts, linear_ratios
from ...schedule.stages import Stage
from ..method import Method


@dataclass(frozen=True)
class NetworkExpansion(Method):
    """Begin with a share of every layer's channels and widen in equal steps to the dense network.

    Attributes:
        width: alpha_0, the share of the channels in the first stage, in (0, 1].
        stages: n_g, the number of stages of equal length; the last is the dense network.
        operator: how new channels are filled: `orthogonal` (the paper's), `random`, `replicate`, or your own.
        multiple_of: round channel counts to multiples that the hardware likes, such as 8; the paper's is 1.

    Raises:
        ConfigError: a setting out of range.
        MorphError: an unknown operator.
    """

    width: float = 0.5
    stages: int = 5
    operator: str | GrowthOperator = "orthogonal"
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.width <= 1:
            raise ConfigError(
                "width out of range", where="NetworkExpansion", expected="0 < width <= 1", found=f"{self.width}"
            )
        if self.stages < 1 or self.multiple_of < 1:
            raise ConfigError(
                "out of range",
                where="NetworkExpansion",
                expected="stages and multiple_of at least 1",
                found=f"stages {self.stages}, multiple_of {self.multiple_of}",
            )
        named(self.operator)

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Stage i trains alpha_i of the channels (equation 1) from epoch ceil(i T / n_g) on.

        Raises:
            ConfigError: more stages than epochs, or a network without channels that can change.
        """
        if self.stages > epochs:
            raise ConfigError(
                "a stage needs at least one epoch",
                where="NetworkExpansion",
                expected=f"at most {epochs} stages",
                found=f"{self.stages}",
            )
        if not network.groups:
            raise ConfigError(
                "no channels of this model can change",
                where="NetworkExpansion",
                todo="`morphogen inspect` says what is pinned and why",
            )
        ratios, starts = linear_ratios(self.width, self.stages), equal_starts(epochs, self.stages)
        return [
            Stage(start, network.subnetwork(width=ratio, multiple_of=self.multiple_of))
            for start, ratio in zip(starts, ratios, strict=True)
        ]

"""A ramp of the input size, the rest as ever (fast.ai; FFCV's ResNet schedule)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ...network import Network
from ...schedule.growth import growth
from ...schedule.linear import equal_starts, linear_ratios
from ...schedule.stages import Stage
from ..method import Method


@dataclass(frozen=True)
class ProgressiveResizing(Method):
    """Train the whole network on small images first.

    Attributes:
        ratio: the side of the first stage's images as a share of the full one, in (0, 1].
        stages: number of stages of equal length; the last has full-size images.

    Raises:
        ConfigError: a setting out of range.
    """

    ratio: float = 0.5
    stages: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1 or self.stages < 1:
            raise ConfigError(
                "out of range",
                where="ProgressiveResizing",
                expected="0 < ratio <= 1 and at least 1 stage",
                found=f"ratio {self.ratio}, stages {self.stages}",
            )

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Resolution in equal steps.

        Raises:
            ConfigError: more stages than epochs, or a model that takes no images.
        """
        ratios, starts = linear_ratios(self.ratio, self.stages), equal_starts(epochs, self.stages)
        return growth(network, starts, epochs, resolution=ratios, who="ProgressiveResizing")

"""The supernet-only baseline (AutoProg, Table 8; supplement, Table VI): the elastic supernet all along, no growth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ...network import Network
from ...schedule.linear import linear_ratios
from ...schedule.space import LEVELS, check_dimensions, growth_space
from ...schedule.stages import Stage
from ..method import Method


@dataclass(frozen=True)
class Supernet(Method):
    """In every step of the run another sub-network of the growth space; the dense network is the result.

    Attributes:
        ratio, dimensions, multiple_of: of the growth space, see `AutoProg`.

    Raises:
        ConfigError: a setting out of range.
    """

    ratio: float = 0.5
    dimensions: tuple[str, ...] = ("depth", "resolution")
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ConfigError("ratio out of range", where="Supernet", expected="0 < ratio <= 1", found=f"{self.ratio}")
        check_dimensions(self.dimensions, "Supernet")

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """One stage whose candidates are all of the growth space."""
        ratios = linear_ratios(self.ratio, LEVELS)
        space = growth_space(network, ratios, self.dimensions, self.table, self.multiple_of)
        return [Stage(0, network.dense, tuple(space.candidates()))]

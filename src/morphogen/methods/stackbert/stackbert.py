"""Half the blocks, stacked on themselves (Gong et al., ICML 2019; Network Expansion, Figure 3a and Table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...morph.entry import DepthOperator
from ...network import Network
from ...schedule.growth import growth
from ...schedule.linear import equal_starts
from ...schedule.stages import Stage
from ..method import Method, whole_blocks


@dataclass(frozen=True)
class StackBERT(Method):
    """Train half the depth for half the epochs, put a copy of all blocks on top, go on."""

    depth_operator: str | DepthOperator = "stack"

    def __post_init__(self) -> None:
        self.check_operators()

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Two stages of equal length.

        Raises:
            ConfigError: fewer than two epochs, or no stack that can be halved.
        """
        whole_blocks(network, 2, "StackBERT")
        return growth(
            network,
            equal_starts(epochs, 2),
            epochs,
            depth=[0.5, 1.0],
            table=self.table,
            who="StackBERT",
        )

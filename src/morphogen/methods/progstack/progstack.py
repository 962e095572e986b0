"""A quarter of the blocks, doubled twice (Gong et al., ICML 2019; AutoProg, supplement C and Table III)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...morph.entry import DepthOperator
from ...network import Network
from ...schedule.growth import growth
from ...schedule.linear import starts_by_ratio
from ...schedule.stages import Stage
from ..method import Method, whole_blocks


@dataclass(frozen=True)
class ProgStack(Method):
    """Begin with 1/4 of the depth and stack the blocks on themselves twice, with steps 1 : 2 : 5.

    Attributes:
        depth_operator: `stack`, or `mostack` for the same from the momentum network (+ MoGrow in Table III).
        decay: of the momentum network; None ties it to the stage's length.
        horizon: the share of a stage's steps that the average then reaches back over.
    """

    depth_operator: str | DepthOperator = "stack"
    decay: float | None = None
    horizon: float = 0.1

    def __post_init__(self) -> None:
        self.check_operators()

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Three stages.

        Raises:
            ConfigError: too few epochs, or no stack that can be halved twice.
        """
        whole_blocks(network, 4, "ProgStack")
        starts = starts_by_ratio(epochs, (1, 2, 5))
        return growth(
            network,
            starts,
            epochs,
            depth=[0.25, 0.5, 1.0],
            table=self.table,
            who="ProgStack",
        )

"""Width growth by neurons of the next block, and depth by stacking (bert2BERT, ACL 2022, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...morph.entry import DepthOperator
from ...morph.growth import GrowthOperator
from ...network import Network
from ...schedule.growth import growth
from ...schedule.linear import equal_starts, linear_ratios
from ...schedule.stages import Stage
from ..method import Method, check_growth


@dataclass(frozen=True)
class Bert2BERT(Method):
    """Begin with a share of every layer's channels, and grow in equal steps out of what has been learnt.

    Attributes:
        width: the share of the channels (embedding, MLP, heads) in the first stage, in (0, 1].
        depth: the share of each block stack in the first stage, in (0, 1]; None keeps the depth whole.
        stages: number of stages of equal length; the last is the dense network. The paper grows once.
        operator: how new channels are filled: `bert2bert` (AKI, the paper's), or `fpi`, which preserves the function.
        depth_operator: how new blocks are filled: `stack` (the paper's), or another.
        multiple_of: round channel counts to multiples that the hardware likes, such as 8.

    Raises:
        ConfigError: a setting out of range.
        MorphError: an unknown operator.
    """

    width: float = 0.5
    depth: float | None = None
    stages: int = 2
    operator: str | GrowthOperator = "bert2bert"
    depth_operator: str | DepthOperator = "stack"
    multiple_of: int = 1

    def __post_init__(self) -> None:
        check_growth("Bert2BERT", self.stages, self.multiple_of, width=self.width, depth=self.depth)
        self.check_operators()

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Stages of equal length, each wider (and deeper) by the same share; new blocks copy widened ones.

        Raises:
            ConfigError: more stages than epochs, or a network without channels or blocks that can change.
        """
        return growth(
            network,
            equal_starts(epochs, self.stages),
            epochs,
            width=linear_ratios(self.width, self.stages),
            depth=None if self.depth is None else linear_ratios(self.depth, self.stages),
            table=self.table,
            multiple_of=self.multiple_of,
            who="Bert2BERT",
        )

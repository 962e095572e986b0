"""Growth of width (CNNs) and depth (ViTs) in equal stages (Network Expansion, section 3, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..dense.network import Network
from ..morph.entry import DepthOperator, depth_named
from ..morph.growth import GrowthOperator
from ..parts import Grow
from ..run.part import Part
from ..schedule.growth import growth
from ..schedule.linear import equal_starts, linear_ratios
from ..schedule.stages import Stage
from .method import Method, average_for, check_growth


@dataclass(frozen=True)
class NetworkExpansion(Method):
    """Begin with a share of every layer's channels, or of the blocks, and grow in equal steps to the dense network.

    Attributes:
        width: alpha_0, the share of the channels in the first stage, in (0, 1]; 0.5 where neither width nor
            depth is given.
        depth: alpha_0, the share of each block stack in the first stage, in (0, 1].
        stages: n_g, the number of stages of equal length; the last is the dense network.
        operator: how new channels are filled: `quiet` (orthogonal to the old ones, and the function stays),
            `orthogonal` (the paper's literal scale), `random`, `replicate`, `net2net`, `bert2bert`, `restore` (as they
            were when they left, for a pretrained network), or your own.
        depth_operator: how new blocks are filled: `momentum` (the paper's), or another.
        decay: of the momentum network; None ties it to the stage's length.
        horizon: the share of a stage's steps that the average then reaches back over.
        choose: which channels a stage has: the first of each group (`position`, the paper's), or the most important of
            the weights that the run begins with (`importance`, for a pretrained network).
        multiple_of: round channel counts to multiples that the hardware likes, such as 8; the paper's is 1.

    Raises:
        ConfigError: a setting out of range.
        MorphError: an unknown operator.
    """

    width: float | None = None
    depth: float | None = None
    stages: int = 5
    operator: str | GrowthOperator = "quiet"
    depth_operator: str | DepthOperator = "momentum"
    decay: float | None = None
    horizon: float = 0.1
    choose: str = "position"
    multiple_of: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width is None and self.depth is None:
            object.__setattr__(self, "width", 0.5)
        check_growth("NetworkExpansion", self.stages, self.multiple_of, width=self.width, depth=self.depth)
        self.parts()

    def parts(self) -> Sequence[Part]:
        """Growths of the width by one operator, of the depth by another, which reads a momentum network."""
        wide = None if self.width is None else self.operator
        deep = None if self.depth is None else self.depth_operator  # no momentum network where no block enters
        grow = Grow(self.schedule, operator=wide, depth_operator=deep, choose=self.choose)
        return [grow, *average_for(deep, self.decay, self.horizon)]

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Stage i trains alpha_i of the channels or blocks (equation 1) from epoch ceil(i T / n_g) on.

        Raises:
            ConfigError: more stages than epochs, or a network without channels or blocks that can change.
        """
        return growth(
            network,
            equal_starts(epochs, self.stages),
            epochs,
            width=None if self.width is None else linear_ratios(self.width, self.stages),
            depth=None if self.depth is None else linear_ratios(self.depth, self.stages),
            table=depth_named(self.depth_operator).table,
            multiple_of=self.multiple_of,
            who="NetworkExpansion",
        )

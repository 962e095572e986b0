"""Uniform linear growth of the number of patches and the depth (AutoProg, sections 3.1 to 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..dense.network import Network
from ..errors import ConfigError
from ..morph.entry import DepthOperator, depth_named
from ..parts import Grow, Regularise, Resize
from ..run.part import Part
from ..schedule.adaptive import adaptive_regularisation, check_adaptive
from ..schedule.growth import growth
from ..schedule.linear import equal_starts, linear_ratios
from ..schedule.stages import Regularisation, Stage
from .method import Method, average_for


@dataclass(frozen=True)
class Prog(Method):
    """Begin with a share s_1 of the depth and of the input's side, and grow both in equal steps.

    Attributes:
        ratio: s_1, in (0, 1]; the paper's are 0.5 and 0.4.
        stages: number of stages of equal length; the last is the dense network.
        depth_operator: `mogrow` (the paper's), `interpolate`, `stack`, `random`, `identity`, `rezero`, `momentum`,
            `mostack`.
        decay: of the momentum network; the paper's is 0.998, None ties it to the stage's length.
        horizon: the share of a stage's steps that the average then reaches back over.
        adaptive: Adaptive Regularisation: the shares of RandAugment's magnitude, of random erasing and of
            stochastic depth in the first stage, from where they rise linearly to 1. The paper's are
            (0.5, 0, 0) for VOLO-D0, (0.5, 0.25, 0.5) for VOLO-D1, and none for DeiT.

    Raises:
        ConfigError: a setting out of range.
        MorphError: an unknown operator.
    """

    ratio: float = 0.5
    stages: int = 4
    depth_operator: str | DepthOperator = "mogrow"
    decay: float | None = None
    horizon: float = 0.1
    adaptive: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1 or self.stages < 1:
            raise ConfigError(
                "out of range",
                where="Prog",
                expected="0 < ratio <= 1 and at least 1 stage",
                found=f"ratio {self.ratio}, stages {self.stages}",
            )
        check_adaptive(self.adaptive, "Prog")
        self.parts()

    def parts(self) -> Sequence[Part]:
        """Growths of depth and resolution, from a momentum network, with regularisation that grows along."""
        return [
            Grow(self.schedule, depth_operator=self.depth_operator),
            *average_for(self.depth_operator, self.decay, self.horizon),
            Resize(),
            Regularise(self.regularisation),
        ]

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Stage k trains s_k of the blocks at s_k of the resolution, s linear from `ratio` to 1.

        Raises:
            ConfigError: more stages than epochs, or a network without block stacks.
        """
        ratios = linear_ratios(self.ratio, self.stages)
        starts = equal_starts(epochs, self.stages)
        return growth(
            network,
            starts,
            epochs,
            depth=ratios,
            resolution=ratios,
            table=depth_named(self.depth_operator).table,
            who="Prog",
        )

    def regularisation(self, epoch: int, epochs: int) -> Regularisation:
        """Adaptive Regularisation (supplement, Table I; Table 7)."""
        return adaptive_regularisation(self.adaptive, self.stages, epoch, epochs)

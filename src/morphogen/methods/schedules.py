"""Methods that are a schedule and nothing else: what they are compared to, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, prod

from ..dense.network import Network
from ..errors import ConfigError, SubNetworkError
from ..morph.entry import DepthOperator, depth_named
from ..morph.growth import GrowthOperator
from ..parts import Grow, Regularise, Resize
from ..run.part import Part
from ..schedule.growth import growth
from ..schedule.linear import equal_starts, linear_ratios, starts_by_ratio
from ..schedule.stages import Regularisation, Stage
from .method import Method, average_for, check_growth, whole_blocks


@dataclass(frozen=True)
class Dense(Method):
    """The baseline: ordinary training of the dense network, through the same loop and clock as every method."""

    def parts(self) -> Sequence[Part]:
        """None."""
        return []


@dataclass(frozen=True)
class ProgressiveResizing(Method):
    """Train the whole network on small images first: a ramp of the input size (fast.ai; FFCV's ResNet schedule).

    Attributes:
        ratio: the side of the first stage's images as a share of the full one, in (0, 1].
        stages: number of stages of equal length; the last has full-size images.

    Raises:
        ConfigError: a setting out of range.
    """

    ratio: float = 0.5
    stages: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1 or self.stages < 1:
            raise ConfigError(
                "out of range",
                where="ProgressiveResizing",
                expected="0 < ratio <= 1 and at least 1 stage",
                found=f"ratio {self.ratio}, stages {self.stages}",
            )

    def parts(self) -> Sequence[Part]:
        """Resolution in equal steps."""
        return [Grow(self.schedule), Resize()]

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Resolution in equal steps.

        Raises:
            ConfigError: more stages than epochs, or a model that takes no images.
        """
        ratios, starts = linear_ratios(self.ratio, self.stages), equal_starts(epochs, self.stages)
        return growth(network, starts, epochs, resolution=ratios, who="ProgressiveResizing")


EFFICIENT = ((96, 2), (160, 4), (224, 4))
EFFICIENT_DEIT = ((96, 2), (160, 4), (192, 2), (224, 2))
"""Side of the images in pixels of 224, and tenths of the run's compute."""


@dataclass(frozen=True)
class EfficientTrain(Method):
    """Low frequencies first (Wang et al., EfficientTrain, ICCV 2023, and EfficientTrain++, TPAMI 2024).

    Crop the image's spectrum to 96, 160, 224 of 224 pixels for 2 : 4 : 4 of the run's *compute*: a part at r pixels has
    (224 / r)^2 times as many epochs as one of equal share at 224. RandAugment's magnitude rises from 0 to the recipe's
    own, in ten steps, one for each tenth of the compute.

    Attributes:
        deit: 96, 160, 192, 224 for 2 : 4 : 2 : 2, which the authors have for DeiT alone.
    """

    deit: bool = False

    @property
    def _curriculum(self) -> tuple[tuple[int, int], ...]:
        return EFFICIENT_DEIT if self.deit else EFFICIENT

    def parts(self) -> Sequence[Part]:
        """Resolution by low frequencies, and RandAugment along."""
        return [Grow(self.schedule), Resize("low-frequency"), Regularise(self.regularisation)]

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Three or four stages of the whole network, at growing resolution.

        A size is a share of the model's own, rounded to what the model can take; a stage's length follows the size that
        is taken.

        Raises:
            ConfigError: too few epochs, or a model that takes no images.
        """
        try:
            sizes = [network.subnetwork(resolution=side / 224).resolution or (1, 1) for side, _ in self._curriculum]
        except SubNetworkError as error:
            raise ConfigError(str(error), where="EfficientTrain") from error
        lengths = [tenths / prod(size) for (_, tenths), size in zip(self._curriculum, sizes, strict=True)]
        starts = starts_by_ratio(epochs, lengths)
        return growth(network, starts, epochs, resolution=sizes, who="EfficientTrain")

    def regularisation(self, epoch: int, epochs: int) -> Regularisation:
        """RandAugment's magnitude in ninths, by the tenth of the compute that the middle of the epoch is in."""
        left, tenths = (epoch + 0.5) / epochs, 0.0
        total = sum(share / side**2 for side, share in self._curriculum)
        for side, share in self._curriculum:
            length = share / side**2 / total
            tenths += share * min(1.0, max(0.0, left) / length)
            left -= length
        return Regularisation(randaugment=min(9, int(tenths)) / 9)


@dataclass(frozen=True)
class StackBERT(Method):
    """Train half the depth for half the epochs, put a copy of all blocks on top, go on.

    Gong et al., ICML 2019; Network Expansion, Figure 3a and Table 2.
    """

    depth_operator: str | DepthOperator = "stack"

    def __post_init__(self) -> None:
        super().__post_init__()
        depth_named(self.depth_operator)

    def parts(self) -> Sequence[Part]:
        """One growth of the depth."""
        return [Grow(self.schedule, depth_operator=self.depth_operator), *average_for(self.depth_operator)]

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
            table=depth_named(self.depth_operator).table,
            who="StackBERT",
        )


@dataclass(frozen=True)
class ProgStack(Method):
    """Begin with 1/4 of the depth and stack the blocks on themselves twice, with steps 1 : 2 : 5.

    Gong et al., ICML 2019; AutoProg, supplement C and Table III.

    Attributes:
        depth_operator: `stack`, or `mostack` for the same from the momentum network (+ MoGrow in Table III).
        decay: of the momentum network; None ties it to the stage's length.
        horizon: the share of a stage's steps that the average then reaches back over.
    """

    depth_operator: str | DepthOperator = "stack"
    decay: float | None = None
    horizon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()

    def parts(self) -> Sequence[Part]:
        """Two growths of the depth, perhaps from a momentum network."""
        grow = Grow(self.schedule, depth_operator=self.depth_operator)
        return [grow, *average_for(self.depth_operator, self.decay, self.horizon)]

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
            table=depth_named(self.depth_operator).table,
            who="ProgStack",
        )


@dataclass(frozen=True)
class Net2Net(Method):
    """Begin with a share of every layer's channels, and widen in equal steps by copies of them.

    Width growth that leaves the function as it is (Net2WiderNet, ICLR 2016, section 3.1).

    Attributes:
        width: the share of the channels in the first stage, in (0, 1].
        stages: number of stages of equal length; the last is the dense network. The paper widens once.
        noise: standard deviation of what is added to the weights into every copy but the first, as a share of the
            tensor's own; 0 for none, which leaves the function exactly as it is.
        multiple_of: round channel counts to multiples that the hardware likes, such as 8.

    Raises:
        ConfigError: a setting out of range.
    """

    width: float = 0.5
    stages: int = 2
    noise: float = 0.01
    multiple_of: int = 1
    operator: str | GrowthOperator = field(default="net2net", init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_growth("Net2Net", self.stages, self.multiple_of, width=self.width)
        if not 0 <= self.noise < inf:
            raise ConfigError("noise out of range", where="Net2Net", expected="noise >= 0", found=f"{self.noise}")
        if self.noise:  # written out, so that the saved schedule of a run says it
            object.__setattr__(self, "operator", f"net2net(noise={self.noise})")

    def parts(self) -> Sequence[Part]:
        """Growths of the width."""
        return [Grow(self.schedule, operator=self.operator)]

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Stages of equal length, each wider by the same share.

        Raises:
            ConfigError: more stages than epochs, or a network without channels that can change.
        """
        return growth(
            network,
            equal_starts(epochs, self.stages),
            epochs,
            width=linear_ratios(self.width, self.stages),
            multiple_of=self.multiple_of,
            who="Net2Net",
        )


@dataclass(frozen=True)
class Bert2BERT(Method):
    """Begin with a share of every layer's channels, and grow in equal steps out of what has been learnt.

    Width by neurons of the next block, depth by stacking (bert2BERT, ACL 2022, section 3).

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
        super().__post_init__()
        check_growth("Bert2BERT", self.stages, self.multiple_of, width=self.width, depth=self.depth)
        self.parts()

    def parts(self) -> Sequence[Part]:
        """Growths of the width, and perhaps of the depth."""
        deep = None if self.depth is None else self.depth_operator
        return [Grow(self.schedule, operator=self.operator, depth_operator=deep), *average_for(deep)]

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
            table=depth_named(self.depth_operator).table,
            multiple_of=self.multiple_of,
            who="Bert2BERT",
        )

"""What a method is: a policy of when to morph, to which sub-network, filled how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ..depth import Table
from ..errors import ConfigError
from ..momentum import Momentum
from ..morph.entry import DepthOperator, depth_named
from ..morph.growth import GrowthOperator, named
from ..network import Network
from ..pruning.policy import Pruning
from ..resize import check_resizing
from ..schedule.mini_batch import MiniBatch
from ..schedule.stages import Regularisation, Stage
from ..subnet import SubNetwork


class Method(ABC):
    """A policy over one network. A method is a frozen dataclass of its settings, checked when it is made.

    Attributes:
        operator: the growth operator of its morphs, or its name.
        depth_operator: the depth operator of its morphs, or its name.
        decay: of the momentum network, for depth operators that need one; None ties it to the stage's length.
        horizon: the share of a stage's steps that the average then reaches back over.
        resizing: how images are brought to a smaller resolution: `bilinear` (antialiased), or `low-frequency`
            (the low frequencies of their spectrum, EfficientTrain).
        searches: whether later stages depend on what is found while training.
        subset: training images to compare candidates on; None leaves it to the trainer.
        recycle: whether the epochs of a search are epochs of the run; otherwise they come on top and are thrown away.
    """

    operator: str | GrowthOperator = "orthogonal"
    depth_operator: str | DepthOperator = "interpolate"
    decay: float | None = None
    horizon: float = 0.1
    resizing: ClassVar[str] = "bilinear"
    searches: ClassVar[bool] = False
    subset: int | None = None
    recycle: bool = True

    def __add__(self, other: Method) -> Method:
        """Both at once, see `Combined`."""
        from .combined import Combined  # which is a method itself

        return Combined((self, other))

    @abstractmethod
    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """The stages of a run of `epochs` epochs, the first at epoch 0, in order.

        Raises:
            ConfigError: the settings do not fit the run's length or the network.
        """

    def continued(self, network: Network, epochs: int, found: Sequence[SubNetwork]) -> Sequence[Stage]:
        """The stages as far as they are known, after searches that found these sub-networks, in order.

        A method that does not search knows them all from the beginning.
        """
        return self.schedule(network, epochs)

    def possible(self, network: Network, epochs: int) -> Sequence[SubNetwork]:
        """Every sub-network that may come to train, to be tried out before the run begins."""
        stages = self.schedule(network, epochs)
        return list(dict.fromkeys(s for stage in stages for s in (*stage.candidates, stage.subnetwork)))

    def regularisation(self, epoch: int, epochs: int) -> Regularisation:
        """How strong the recipe's regularisation is in an epoch; by default as the recipe says."""
        return Regularisation()

    def pruning(self, epochs: int) -> Pruning | None:
        """How a run of so many epochs prunes on top of its stages; by default not at all.

        Raises:
            ConfigError: the settings do not fit the run's length.
        """
        return None

    def restarts(self, epochs: int) -> tuple[int, ...]:
        """The epochs at which the recipe's learning-rate schedule begins anew; by default none."""
        return ()

    @property
    def mini_batch(self) -> MiniBatch | None:
        """How the batch follows the sub-network; None keeps it what it is."""
        return None

    def check_operators(self) -> None:
        """Raise MorphError for an unknown operator, ConfigError for an unknown resizing or a decay out of range."""
        named(self.operator)
        depth_named(self.depth_operator)
        check_resizing(self.resizing)
        Momentum(self.decay, self.horizon)

    @property
    def table(self) -> Table:
        """Where the depth operator puts new blocks among the old ones."""
        return depth_named(self.depth_operator).table

    @property
    def momentum(self) -> Momentum | None:
        """The momentum network that the depth operator needs, None where it needs none."""
        return Momentum(self.decay, self.horizon) if depth_named(self.depth_operator).momentum else None


def check_growth(who: str, stages: int, multiple_of: int, **shares: float | None) -> None:
    """Refuse settings of growth in equal steps that are out of range.

    Raises:
        ConfigError: a share (of width, of depth) outside (0, 1], less than one stage, multiples of less than 1.
    """
    for name, share in shares.items():
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"{name} out of range", where=who, expected=f"0 < {name} <= 1", found=f"{share}")
    if stages < 1 or multiple_of < 1:
        raise ConfigError(
            "out of range",
            where=who,
            expected="stages and multiple_of at least 1",
            found=f"stages {stages}, multiple_of {multiple_of}",
        )


def whole_blocks(network: Network, parts: int, who: str) -> None:
    """Refuse a network whose deepest stack cannot begin with one of so many parts and be doubled to its full size.

    Raises:
        ConfigError: it has no stack, or the number of blocks does not divide.
    """
    deepest = max(network.stacks, key=lambda stack: stack.size, default=None)
    if deepest is not None and deepest.size % parts:
        raise ConfigError(
            f"this stack cannot begin with 1/{parts} of its blocks",
            where=f"{who}, {deepest.name}",
            expected=f"a multiple of {parts} blocks",
            found=f"{deepest.size}",
            todo="Use NetworkExpansion(depth=...) or Prog, which take any depth",
        )

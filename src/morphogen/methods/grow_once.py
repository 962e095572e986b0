"""A small network for most of the run, then the whole one, at once and without a change of its function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..dense.network import Network
from ..errors import ConfigError, SubNetworkError
from ..morph.entry import DepthOperator, depth_named
from ..morph.growth import GrowthOperator, named
from ..parts import Grow, Resize
from ..run.part import Part
from ..schedule.growth import growth
from ..schedule.stages import Stage
from .method import Method, check_growth

RESOLUTION, DEPTH, DEEP, LONG = 0.625, 0.25, 6, 30
"""Shares of the side and of the blocks to begin with, where nothing else is asked for; the blocks of a stack and the
epochs of a run that are enough to begin with a quarter of the blocks. Measured: see the card."""

KEPT_DEPTH = 0.5
"""Share of the blocks of a pretrained network, which is worth little without most of them. Not measured."""


@dataclass(frozen=True)
class GrowOnce(Method):
    """Train a small network for most of the run, then grow it once to the dense one, which goes on from its function.

    What is small is chosen by what the model has, resolution first: the side of its images, then the blocks of a deep
    stack. The learning rate should be flat until the growth (`--lr_schedule wsd`): what enters late under a cosine
    hardly learns.

    Attributes:
        at: the share of the run after which it grows, in (0, 1).
        resolution: share of the input's side before, in (0, 1]; None is 0.625 where the model takes images.
        depth: share of each block stack before, in (0, 1]; None is a quarter (of a pretrained network half) of a
            stack of at least six blocks whose residual branches can be silenced, in models with one stack
            (transformers), and all of it elsewhere. A run of fewer than 30 epochs keeps all blocks too, where images
            are small instead: so few epochs with a quarter of the blocks cost more accuracy than they save time.
        width: share of the channels before, in (0, 1].
        pretrained: the model's weights are worth keeping: the channels that stay are the most important ones, and
            channels and blocks come back as they were when they left. It is what the three settings below are by
            default: `GrowOnce(pretrained=True, width=0.5)`.
        choose: which channels are the small network's: the first of each group (`position`), or those of the largest
            norm (`importance`).
        operator: how new channels are filled; `quiet`, or `restore`.
        depth_operator: how new blocks are filled; `identity`, or `restore`.
        multiple_of: round channel counts to multiples that the hardware likes.

    Raises:
        ConfigError: a setting out of range.
        MorphError: an unknown operator.
    """

    at: float = 0.65
    resolution: float | None = None
    depth: float | None = None
    width: float = 1.0
    pretrained: bool = False
    choose: str | None = None
    operator: str | GrowthOperator | None = None
    depth_operator: str | DepthOperator | None = None
    multiple_of: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = {"width": self.width, "depth": self.depth, "resolution": self.resolution}
        check_growth("GrowOnce", 2, self.multiple_of, **shares)
        if not 0 < self.at < 1:
            raise ConfigError("at out of range", where="GrowOnce", expected="0 < at < 1", found=f"{self.at}")
        named(self._how[1])
        self.parts()

    def parts(self) -> Sequence[Part]:
        """One growth of everything, and images of its size."""
        choose, wide, deep = self._how
        grow = Grow(self.schedule, operator=None if self.width == 1 else wide, depth_operator=deep, choose=choose)
        return [grow, Resize()]

    @property
    def _how(self) -> tuple[str, str | GrowthOperator, str | DepthOperator]:
        """How channels are chosen, and new channels and blocks filled: as asked, or as the weights suggest."""
        usual = ("importance", "restore", "restore") if self.pretrained else ("position", "quiet", "identity")
        return self.choose or usual[0], self.operator or usual[1], self.depth_operator or usual[2]

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Two stages; the second begins at the epoch nearest to `at` of the run.

        Raises:
            ConfigError: fewer than two epochs, or a network of which nothing is small.
        """
        width = self.width
        resolution = self._resolution(network) if self.resolution is None else self.resolution
        enough = resolution < 1 and epochs < LONG
        depth = (1.0 if enough else self._depth(network)) if self.depth is None else self.depth
        stages = growth(
            network,
            [0, max(1, min(epochs - 1, round(self.at * epochs)))],
            epochs,
            width=None if width == 1 else [width, 1.0],
            depth=None if depth == 1 else [depth, 1.0],
            resolution=None if resolution == 1 else [resolution, 1.0],
            table=depth_named(self._how[2]).table,
            multiple_of=self.multiple_of,
            who="GrowOnce",
        )
        if stages[0].subnetwork == network.dense:
            small = (width, depth, resolution) != (1, 1, 1)
            raise ConfigError(
                "nothing of this model is small before the growth",
                where="GrowOnce",
                expected="images, or a deep stack of blocks, or a width below 1",
                found=f"shares that are rounded to the whole, channels to multiples of {self.multiple_of}"
                if small
                else "a model that takes no images, or images of one size alone, and has no deep stack, or several",
                todo="Take smaller shares, or another multiple_of"
                if small
                else "GrowOnce(width=0.5) begins with half of the channels",
            )
        return stages

    def _depth(self, network: Network) -> float:
        deep = len(network.stacks) == 1 and network.stacks[0].size >= DEEP and network.stacks[0].writers is not None
        return (KEPT_DEPTH if self.pretrained else DEPTH) if deep else 1.0

    @staticmethod
    def _resolution(network: Network) -> float:
        dense = network.dense.resolution
        if dense is None:
            return 1.0
        height, width = (max(1, round(RESOLUTION * side)) for side in dense)
        try:
            return 1.0 if network.grids.nearest((height, width)) == dense else RESOLUTION
        except SubNetworkError:  # it runs at its own size alone
            return 1.0

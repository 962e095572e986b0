"""Small images first, or a small network; the whole one for the end, grown without a change of its function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..dense.grid import Resolution
from ..dense.network import Network
from ..errors import ConfigError, SubNetworkError
from ..morph.entry import DepthOperator, depth_named
from ..morph.growth import GrowthOperator, named
from ..parts import Grow, Resize
from ..run.part import Part
from ..schedule.growth import growth
from ..schedule.linear import linear_ratios, starts_by_ratio
from ..schedule.stages import Stage
from .method import Method, check_growth

SMALLEST, SIZES = 0.375, 6
"""The side of the first images as a share of the full one, and the number of sizes up to it. Measured: see the card."""

DEPTH, DEEP = 0.25, 6
"""The share of the blocks to begin with where images cannot be small, and how many blocks a stack then has."""

KEPT_RESOLUTION, KEPT_DEPTH = 0.625, 0.5
"""Shares of the side and of the blocks of a pretrained network, which is worth little without most of them."""


@dataclass(frozen=True)
class GrowOnce(Method):
    """Train on small images first, which grow size by size; a network that begins smaller grows once, and goes on from
    its function.

    What is small is chosen by what the model has, resolution first: the side of its images; the blocks of a deep stack
    where images cannot be small. Give it 1.5 times the epochs of dense training: with small images an epoch costs a
    third on average, and teaches less. The learning rate should be flat for most of the run (`--lr_schedule wsd`): what
    enters late under a cosine hardly learns.

    Attributes:
        at: the share of the run after which the network grows, in (0, 1). Without effect where six sizes of the images
            are all that is small.
        resolution: share of the input's side until then, in (0, 1]. None, where the model takes images: six sizes
            from 3/8 of the side to the whole, each with the same share of the run's compute, so that the smallest has
            most of the epochs; of a pretrained network 0.625.
        depth: share of each block stack until then, in (0, 1]; None is all of it, but a quarter (of a pretrained
            network half) of a stack of at least six blocks whose residual branches can be silenced, in models with one
            stack (transformers), where images cannot be small.
        width: share of the channels until then, in (0, 1].
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
        """One stage for each size of the images; the network is whole from the epoch nearest to `at` of the run.

        Raises:
            ConfigError: fewer than two epochs, or a network of which nothing is small.
        """
        grown = max(1, min(epochs - 1, round(self.at * epochs)))
        sizes = self._sizes(network, epochs, grown)
        depth = self._depth(network, small=len(sizes) > 1) if self.depth is None else self.depth
        starts = sorted({*sizes, grown} if min(self.width, depth) < 1 else sizes)
        stages = growth(
            network,
            starts,
            epochs,
            width=None if self.width == 1 else [self.width if start < grown else 1.0 for start in starts],
            depth=None if depth == 1 else [depth if start < grown else 1.0 for start in starts],
            resolution=[sizes[max(begun for begun in sizes if begun <= start)] for start in starts]
            if len(sizes) > 1
            else None,
            table=depth_named(self._how[2]).table,
            multiple_of=self.multiple_of,
            who="GrowOnce",
        )
        if stages[0].subnetwork == network.dense:
            small = (self.width, depth, self.resolution or 1) != (1, 1, 1)
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

    def _sizes(self, network: Network, epochs: int, grown: int) -> Mapping[int, float | Resolution]:
        """The size of the images by the epoch from which it is theirs: the whole one last."""
        whole = network.dense.resolution
        if self.resolution is not None or whole is None:
            small = 1.0 if self.resolution is None else self.resolution
            return {0: small} | ({} if small == 1 else {grown: 1.0})
        if self.pretrained:
            legal = _legal(network, KEPT_RESOLUTION) or whole
            return {0: legal} | ({} if legal == whole else {grown: whole})
        sizes = [whole]
        for share in reversed(linear_ratios(SMALLEST, SIZES)[:-1]):
            size = _legal(network, share)
            if size is None:  # nor does it run at a smaller one: that takes long to find out
                break
            if prod(size) < prod(sizes[0]):
                sizes.insert(0, size)
        _, *later = starts_by_ratio(epochs, [1 / prod(size) for size in sizes])
        starts = [0, *(max(1, min(start, epochs - 1)) for start in later)]
        return dict(zip(starts, sizes, strict=True))  # of two sizes that begin together, in a short run, the larger

    def _depth(self, network: Network, small: bool) -> float:
        deep = len(network.stacks) == 1 and network.stacks[0].size >= DEEP and network.stacks[0].writers is not None
        return (KEPT_DEPTH if self.pretrained else DEPTH) if deep and not small else 1.0


def _legal(network: Network, share: float) -> Resolution | None:
    """The size nearest to a share of the side at which the model runs; None where it takes none as small."""
    whole = network.dense.resolution
    assert whole is not None
    height, width = (max(1, round(share * side)) for side in whole)
    try:
        return network.grids.nearest((height, width))
    except SubNetworkError:
        return None

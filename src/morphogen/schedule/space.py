"""The growth space (Omega of AutoProg): the sub-networks a search may choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..dense.depth import Table, inserted
from ..dense.network import Network, round_half_up
from ..dense.subnet import SubNetwork, contains
from ..errors import ConfigError

T = TypeVar("T")

DIMENSIONS = ("depth", "resolution", "width")

LEVELS = 4
"""Levels of each dimension: the paper's shares 0.5, 0.67, 0.83 and 1."""

Blocks = Mapping[str, tuple[int, ...]]
Channels = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class GrowthSpace:
    """Every combination of a few levels of depth, resolution and width, each from small to large.

    A larger level has everything a smaller one has, so that the weights of all nest in the dense network.

    Attributes:
        depths: blocks alive at each level of depth.
        resolutions: input size at each level of resolution.
        widths: channels alive at each level of width.
    """

    depths: tuple[Blocks, ...]
    resolutions: tuple[tuple[int, int] | None, ...]
    widths: tuple[Channels, ...]

    def candidates(self) -> list[SubNetwork]:
        """All of Omega."""
        return self._combined(range(len(self.depths)), range(len(self.resolutions)), range(len(self.widths)))

    def at(self, progress: float) -> SubNetwork:
        """The uniform linear schedule of `Prog`: all dimensions at the same level, from 0 at the start to 1."""
        deep, large, wide = (
            round_half_up(progress * (len(values) - 1)) for values in (self.depths, self.resolutions, self.widths)
        )
        return SubNetwork(self.widths[wide], self.depths[deep], self.resolutions[large])

    def first(self) -> list[SubNetwork]:
        """Lambda_1: the smallest, the medium and the largest level of each dimension (supplement, section B).

        Of four levels the third is the medium one: the supplement's VOLO-D2 begins there (Table VII).
        """
        levels = (
            sorted({0, len(values) // 2, len(values) - 1}) for values in (self.depths, self.resolutions, self.widths)
        )
        return self._combined(*levels)

    def following(self, current: SubNetwork) -> list[SubNetwork]:
        """Lambda_k: the current and the next three levels of depth, the current and the next one of the others."""
        deep = self.depths.index(current.blocks)
        large = self.resolutions.index(current.resolution)
        wide = self.widths.index(current.channels)
        return self._combined(
            range(deep, min(deep + 4, len(self.depths))),
            range(large, min(large + 2, len(self.resolutions))),
            range(wide, min(wide + 2, len(self.widths))),
        )

    def _combined(self, deep: Sequence[int], large: Sequence[int], wide: Sequence[int]) -> list[SubNetwork]:
        return [
            SubNetwork(self.widths[w], self.depths[d], self.resolutions[r]) for w in wide for r in large for d in deep
        ]


@dataclass(frozen=True)
class ListedSpace:
    """A growth space of the user's own: a list of sub-networks."""

    subnetworks: tuple[SubNetwork, ...]

    def candidates(self) -> list[SubNetwork]:
        """All of them, each once."""
        return list(dict.fromkeys(self.subnetworks))

    def at(self, progress: float) -> SubNetwork:
        """No schedule is known of these: the first."""
        return self.subnetworks[0]

    def first(self) -> list[SubNetwork]:
        """All of them."""
        return self.candidates()

    def following(self, current: SubNetwork) -> list[SubNetwork]:
        """Those that have all of the current one."""
        return [candidate for candidate in self.candidates() if contains(candidate, current)]


def check_dimensions(dimensions: Sequence[str], multiple_of: int, who: str) -> None:
    """Refuse anything but some of `DIMENSIONS`, and multiples of less than 1; raises ConfigError."""
    if not dimensions or isinstance(dimensions, str) or any(each not in DIMENSIONS for each in dimensions):
        raise ConfigError(
            "no such dimension", where=who, expected=f"some of {', '.join(DIMENSIONS)}", found=f"{dimensions}"
        )
    if multiple_of < 1:
        raise ConfigError("multiple_of out of range", where=who, expected="at least 1", found=f"{multiple_of}")


def growth_space(
    network: Network, ratios: Sequence[float], dimensions: Sequence[str], table: Table, multiple_of: int = 1
) -> GrowthSpace:
    """Omega of a model: the dense values times each ratio, rounded to what the model can be (AutoProg, section 5).

    Args:
        network: the dense network.
        ratios: shares of the dense network, ascending, the last one 1.
        dimensions: those that may be smaller: `depth`, `resolution`, `width`; the others are whole.
        table: the index table of the depth operator, by which a stack's blocks are placed.
        multiple_of: of channel counts, see `Network.subnetwork`.

    Raises:
        ConfigError: a dimension that this network cannot change.
    """
    there = {"depth": network.stacks, "resolution": network.structure.resolution, "width": network.groups}
    for dimension in dimensions:
        if not there[dimension]:
            raise ConfigError(
                f"the {dimension} of this model cannot change",
                where="growth space",
                expected="block stacks for depth, images (N, C, H, W) for resolution, channel groups for width",
                todo="Leave it out of `dimensions`; `morphogen inspect` says what was found",
            )

    def levels(dimension: str) -> Sequence[float]:
        return ratios if dimension in dimensions else [1.0]

    depths = []
    for share in levels("depth"):
        blocks = {}
        for stack in network.stacks:
            least, length = (max(1, round_half_up(s * stack.size)) for s in (levels("depth")[0], share))
            blocks[stack.name] = inserted(least, length, stack.size, table)
        depths.append(blocks)
    resolutions = [network.subnetwork(resolution=float(share)).resolution for share in levels("resolution")]
    widths = (
        [network.subnetwork(width=float(share), multiple_of=multiple_of).channels for share in ratios]
        if "width" in dimensions
        else [network.dense.channels]
    )
    return GrowthSpace(_distinct(depths), _distinct(resolutions), _distinct(widths))


def _distinct(values: Sequence[T]) -> tuple[T, ...]:
    return tuple(value for i, value in enumerate(values) if value not in values[:i])

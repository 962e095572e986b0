"""The shared vocabulary: what a dense network consists of, and what of it is alive.

Everything here is plain, frozen data. `graph` derives it, `morph` acts on it, neither knows the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import lcm
from typing import Any

import torch

from ..errors import ConfigError, SubNetworkError, first_line
from ..machine.placement import on_cpu
from ..machine.reading import MALFORMED, parse_json
from .caches import Cached
from .ranges import MOST_UNITS, read_ranges, read_resolution, spread, to_ranges

FIXED = -1
"""The unit of an axis position that is always alive: an image channel, a class, a kernel tap."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are dropped and grown by the same decision: a residual stage, a conv-BN-conv chain.

    The group is a row of `size` units. A unit is the least that can leave without changing what the rest
    computes: usually one channel, for a grouped convolution one of its groups. `channels` counts the
    positions of the group on the axis of the layer that names it, so a unit is `channels // size` of them.

    Attributes:
        name: path of the first layer that produces the group, such as `layer1.0.conv1`.
        size: number of units; a sub-network keeps at least one.
        channels: number of channels in the naming layer.
        members: the tensor axes that follow the group, such as `layer1.0.bn1.weight[0]`.
        inner: it shares its axes with a group that cuts them in larger parts (the positions within heads, with the
            heads). Either can change; a width for all groups leaves the inner one whole.
    """

    name: str
    size: int
    channels: int
    members: tuple[str, ...] = field(repr=False)
    inner: bool = False

    @property
    def unit(self) -> int:
        """Channels of the naming layer in one unit."""
        return self.channels // self.size

    def rounded_up(self, units: int, multiple_of: int) -> int:
        """The least number of units, no fewer than these, whose channels are a multiple; all units where none is."""
        step = lcm(self.unit, multiple_of) // self.unit
        return min(self.size, -(-units // step) * step)


@dataclass(frozen=True)
class PinnedAxis:
    """A tensor axis that stays whole in every sub-network, and why."""

    axis: str
    size: int
    reason: str


@dataclass(frozen=True)
class DropPath:
    """A module that drops whole residual branches in training (stochastic depth), and its rate when dense."""

    path: str
    attribute: str
    rate: float


@dataclass(frozen=True)
class HandsOn:
    """What a block hands on when it is out.

    Attributes:
        passes: for each thing it returns, the position among the tensors and numbers it is called with (flattened);
            -1 for None.
        output: the form of what it returns (PyTorch's TreeSpec).
        zero: zeros instead, in the shapes of those tensors: whoever calls the block adds what it returns to its input.
    """

    passes: tuple[int, ...] = (0,)
    output: Any = field(default=None, repr=False, compare=False)
    zero: bool = False


@dataclass(frozen=True)
class BlockStack:
    """A run of interchangeable blocks of the dense network: same type, same tensors, one feeding the next.

    The stack is a row of units that enter and leave: usually one block each, two where every second block
    differs (the shifted windows of Swin), or where the model's loop calls two (attention and feed-forward).

    Attributes:
        name: path of the container, with a range where it is only a part: `blocks`, `features[4:7]`.
        units: the module paths of each unit's blocks, in the order they run.
        hands_on: for each block of a unit, what it hands on when it is out.
        drop_path: stochastic depth in each unit.
        writers: the tensors that write into the residual stream; with all of them zero, a unit passes its
            input through. For each, whether it belongs to a layer whose output is the branch's, so that
            scaling what the layer returns does the same. None where the blocks have no residual branches that
            could be silenced.
        bottlenecks: for each unit and each of its residual branches, the weights that all paths of the branch lead
            through; with one of them zero, the branch is constant. Empty where `writers` is None.
    """

    name: str
    units: tuple[tuple[str, ...], ...]
    hands_on: tuple[HandsOn, ...] = field(default=(HandsOn(),), repr=False)
    drop_path: tuple[tuple[DropPath, ...], ...] = field(default=(), repr=False)
    writers: Mapping[str, bool] | None = field(default=None, repr=False)
    bottlenecks: tuple[tuple[frozenset[str], ...], ...] = field(default=(), repr=False)

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.units)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The module paths of all blocks."""
        return tuple(path for unit in self.units for path in unit)

    @property
    def places(self) -> Iterator[tuple[str, HandsOn]]:
        """The module paths of all blocks, and what each hands on when it is out."""
        return ((path, hands_on) for unit in self.units for path, hands_on in zip(unit, self.hands_on, strict=True))

    def counterpart(self, name: str, unit: int, other: int) -> str:
        """The tensor of unit `other` that is what tensor `name` is in `unit`."""
        for path, other_path in zip(self.units[unit], self.units[other], strict=True):
            if is_inside(name, path):
                return other_path + name[len(path) :]
        raise KeyError(name)


def is_inside(name: str, path: str) -> bool:
    """Whether a tensor or module is (in) the module at `path`."""
    return name == path or name.startswith(path + ".")


def within(name: str, paths: frozenset[str]) -> bool:
    """Whether a tensor or module is inside one of several modules."""
    if not paths:
        return False
    end = len(name)
    while end != -1:
        if name[:end] in paths:
            return True
        end = name.rfind(".", 0, end)
    return False


@dataclass(frozen=True)
class FixedBlock:
    """A block that cannot enter or leave although its neighbour is of the same kind, and why."""

    path: str
    reason: str


KINDS = ("weight", "bias", "scale", "shift", "mean", "variance", "direct")
"""What a tensor can be to its layer, see `Role`."""


@dataclass(frozen=True)
class Role:
    """What a tensor is to the layer that reads it; growth operators decide by it how to fill new entries.

    Attributes:
        kind: `weight` (of a convolution or linear layer), `bias`, `scale`, `shift`, `mean`, `variance`
            (of a normalisation), or `direct` (a parameter used as it is: a layer scale, a token).
        outs, ins: the axes of a `weight` along which its outputs lie, and those that it sums over; several where heads
            and their channels are axes of their own. A kernel that spans its inputs sums over its last axis.
        batch: axes along which there is a matrix for each position (the experts of a mixture); all that is in none of
            the three is the taps of a kernel.
        groups: number of groups of the dense convolution.
        blockwise: the convolution loses and gains whole groups, so new inputs meet new outputs only.

    Raises:
        ConfigError: another kind.
    """

    kind: str
    outs: tuple[int, ...] = (0,)
    ins: tuple[int, ...] = (1,)
    batch: tuple[int, ...] = ()
    groups: int = 1
    blockwise: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("no such role of a tensor", expected=", ".join(KINDS), found=repr(self.kind))

    @property
    def filters(self) -> int | None:
        """The axis with one filter at each position; None where outputs have several axes, or none."""
        return self.outs[0] if self.kind == "weight" and len(self.outs) == 1 else None

    def through(self, order: Sequence[int]) -> Role:
        """The role of another tensor; `order[i]` is the axis of it that axis i of this one is."""
        if self.kind != "weight":
            return self
        outs, ins, batch = (tuple(order[axis] for axis in axes) for axes in (self.outs, self.ins, self.batch))
        return replace(self, outs=outs, ins=ins, batch=batch)


@dataclass(frozen=True)
class Layout:
    """For each axis of a tensor of the dense network, the unit each position belongs to (int64, FIXED where
    none), or None where the whole axis is fixed. Units are numbered through all groups of the network."""

    shape: tuple[int, ...]
    axes: tuple[torch.Tensor | None, ...]

    def alive_shape(self, alive: torch.Tensor, whole: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The tensor's shape in the sub-network whose mask is `alive`; `whole` is its shape with all channels
        where that is not the dense one (at another resolution)."""
        return tuple(
            size if axis is None else int(alive[axis].sum())
            for size, axis in zip(whole or self.shape, self.axes, strict=True)
        )


@dataclass(frozen=True)
class TensorLayout(Layout):
    """The layout of a parameter or buffer, and its role."""

    role: Role

    def places(self, alive: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        """Each axis that changes, and its positions that are alive."""
        return [(dim, alive[axis].nonzero().flatten()) for dim, axis in enumerate(self.axes) if axis is not None]

    def part(self, whole: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        """What of the dense network's tensor is alive."""
        for dim, where in self.places(alive):
            whole = whole.index_select(dim, where.to(whole.device))
        return whole


@dataclass(frozen=True)
class BatchNorm:
    """The batch norm right behind a layer.

    Attributes:
        scale, variance: names of its learned scale (gamma) and of its running variance.
        eps: what it adds to the variance.
    """

    scale: str
    variance: str
    eps: float


@dataclass(frozen=True)
class AttributeLayout:
    """A size that a module keeps (`in_channels`, `groups`, `normalized_shape`) and the axes it counts.

    Attributes:
        path: the module; empty for the model itself.
        name: the attribute.
        dense: its value in the dense network, one number or several.
        axes: for each number the units it counts, None where it is fixed.
    """

    path: str
    name: str
    dense: float | tuple[int, ...] | list[int]
    axes: tuple[torch.Tensor | None, ...]

    def value(self, alive: torch.Tensor) -> float | tuple[int, ...] | list[int]:
        """The attribute's value in the sub-network whose mask is `alive`."""

        def count(number: Any, axis: torch.Tensor | None) -> Any:
            return number if axis is None else int(alive[axis].sum())

        if isinstance(self.dense, (tuple, list)):
            return type(self.dense)(map(count, self.dense, self.axes))
        return count(self.dense, self.axes[0])


@dataclass(frozen=True)
class ExpectedCall:
    """One op of the dense forward pass, and what the traced axes say of it at any size.

    Attributes:
        op, path: its name and the module that runs it.
        outputs: shape and axes of each tensor it returns.
        sizes: arguments that count axes (`groups`, `normalized_shape`), by name.
    """

    op: str
    path: str
    outputs: tuple[Layout, ...]
    sizes: Mapping[str, AttributeLayout]


@dataclass(frozen=True)
class ForwardPath:
    """The ops a forward pass runs, in order, in training or in evaluation mode.

    Attributes:
        training: in which of the two.
        calls: the ops; the same object for both modes where both run the same.
        free: of what it returns, numbered as PyTorch flattens it, that which may come out at another size.
    """

    training: bool
    calls: tuple[ExpectedCall, ...]
    free: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Structure:
    """All that a morph needs to know of a dense network, without its graph."""

    groups: tuple[ChannelGroup, ...]
    pinned: tuple[PinnedAxis, ...]
    stacks: tuple[BlockStack, ...]
    tensors: Mapping[str, TensorLayout]
    attributes: tuple[AttributeLayout, ...]
    paths: tuple[ForwardPath, ...]
    resolution: tuple[int, int] | None
    fixed_blocks: tuple[FixedBlock, ...] = ()
    drop_path: tuple[DropPath, ...] = ()
    """Stochastic depth outside block stacks."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Ops without a rule, and a module that runs each; what they read stays whole."""
    exclude: tuple[str, ...] = ()
    """Module paths that the user left whole."""
    products: torch.Tensor = field(default_factory=lambda: torch.empty(0, 1, dtype=torch.long))
    """Units that are alive where several others are (position 6 of head 1), one a row: the numbers of those, filled
    up with FIXED. Their own numbers follow those of the groups' units."""
    norms: Mapping[str, BatchNorm] = field(default_factory=dict)
    """The batch norm that alone reads what a convolution or linear layer makes, by the name of the layer's weight."""
    layers: tuple[str, ...] = ()
    """Paths of the layers that were read as a whole, by a rule of their own."""
    outputs: tuple[str, ...] = ()
    """The outputs that matter, as messages call them."""
    caches: tuple[Cached, ...] = ()
    """What the first forward pass leaves in the modules to use again."""

    def fingerprint(self) -> str:
        """A hash of what sub-networks of this network mean: its channel groups, block stacks and tensors."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        groups = [[group.name, group.size] for group in self.groups]
        stacks = [[stack.name, stack.units] for stack in self.stacks]
        tensors = [[name, layout.shape] for name, layout in sorted(self.tensors.items())]
        text = json.dumps([groups, stacks, tensors, self.resolution])
        return hashlib.sha256(text.encode()).hexdigest()

    def absent(self, subnetwork: SubNetwork) -> tuple[str, ...]:
        """The module paths of the blocks that are out in a sub-network, in the model's order."""
        return tuple(
            path
            for stack in self.stacks
            for number, unit in enumerate(stack.units)
            if number not in subnetwork.blocks[stack.name]
            for path in unit
        )

    def present(self, subnetwork: SubNetwork) -> dict[str, TensorLayout]:
        """The layouts of the tensors that a sub-network has."""
        absent = frozenset(self.absent(subnetwork))
        return {name: layout for name, layout in self.tensors.items() if not within(name, absent)}

    @on_cpu
    def alive_mask(self, subnetwork: SubNetwork) -> torch.Tensor:
        """Boolean mask over all units, with one True behind them so that FIXED (-1) reads as alive."""
        mask = torch.zeros(sum(group.size for group in self.groups) + len(self.products) + 1, dtype=torch.bool)
        mask[-1] = True
        start = 0
        for group in self.groups:
            mask[start + torch.tensor(subnetwork.channels[group.name], dtype=torch.long)] = True
            start += group.size
        mask[start:-1] = mask[self.products].all(1)
        return mask

    @on_cpu
    def unit_groups(self) -> torch.Tensor:
        """For each unit, the number of its group; FIXED for products, which have several."""
        sizes = torch.tensor([group.size for group in self.groups], dtype=torch.long)
        own = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        return torch.cat([own, torch.full((len(self.products),), FIXED)])


@dataclass(frozen=True)
class SubNetwork:
    """What of the dense network is alive (psi of the papers): plain data, equal by value, JSON in and out.

    Attributes:
        channels: for each channel group, the sorted indices of the units that are alive.
        blocks: for each block stack, the sorted dense positions of the units (blocks, mostly) that are alive.
        resolution: (height, width) of the input in pixels, None where the input is no image.
    """

    channels: Mapping[str, tuple[int, ...]]
    blocks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    resolution: tuple[int, int] | None = None

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        """With index lists as ranges: they can be thousands."""
        return "SubNetwork({})".format(", ".join(f"{key}={value}" for key, value in self.to_dict().items()))

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of JSON types, index lists as ranges: `"0:32,40:48"`."""
        return {
            "channels": {name: to_ranges(alive) for name, alive in self.channels.items()},
            "blocks": {name: to_ranges(alive) for name, alive in self.blocks.items()},
            "resolution": None if self.resolution is None else list(self.resolution),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> SubNetwork:
        """The inverse of `to_dict`.

        Raises:
            SubNetworkError: the data does not describe a sub-network.
        """
        return SubNetwork.from_dicts([data])[0]

    @staticmethod
    def from_dicts(items: Sequence[Mapping[str, Any]]) -> tuple[SubNetwork, ...]:
        """The sub-networks of one file, which are bounded together: a short text can name many units.

        Raises:
            SubNetworkError: one of the data does not describe a sub-network, or they have more than MOST_UNITS.
        """
        try:
            runs = [[read_ranges(data["channels"]), read_ranges(data["blocks"])] for data in items]
            units = sum(
                stop - start for kinds in runs for each in kinds for ranges in each.values() for start, stop in ranges
            )
            if units > MOST_UNITS:
                raise ValueError(f"{units:,} channels and blocks, more than {MOST_UNITS:,}")
            return tuple(
                SubNetwork(spread(channels), spread(blocks), read_resolution(data["resolution"]))
                for data, (channels, blocks) in zip(items, runs, strict=True)
            )
        except MALFORMED as error:
            raise SubNetworkError(
                "not a sub-network",
                expected="keys channels, blocks, resolution with index ranges such as '0:32,40:48'",
                found=first_line(error),
            ) from None

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> SubNetwork:
        """The inverse of `to_json`; raises SubNetworkError where it does not fit."""
        try:
            data = parse_json(text)
        except (TypeError, ValueError) as error:
            raise SubNetworkError("not a sub-network", expected="JSON", found=first_line(error)) from None
        return SubNetwork.from_dict(data)


def contains(larger: SubNetwork, smaller: SubNetwork) -> bool:
    """Whether everything alive in one sub-network is alive in the other, and its input is no larger."""
    return union([larger, smaller]) == larger


def union(subnetworks: Sequence[SubNetwork]) -> SubNetwork:
    """The smallest sub-network of which all of these are parts."""
    return _merged(subnetworks, lambda mine, theirs: mine | theirs, max)


def intersection(subnetworks: Sequence[SubNetwork]) -> SubNetwork:
    """What is alive in all of them, at the smallest input."""
    return _merged(subnetworks, lambda mine, theirs: mine & theirs, min)


def _merged(
    subnetworks: Sequence[SubNetwork],
    merge: Callable[[set[int], set[int]], set[int]],
    side: Callable[[int, int], int],
) -> SubNetwork:
    merged = subnetworks[0]
    for each in subnetworks[1:]:
        channels, blocks = (
            {name: tuple(sorted(merge({*alive}, {*theirs[name]}))) for name, alive in mine.items()}
            for mine, theirs in ((merged.channels, each.channels), (merged.blocks, each.blocks))
        )
        resolution = merged.resolution
        if resolution is not None and each.resolution is not None:
            resolution = (side(resolution[0], each.resolution[0]), side(resolution[1], each.resolution[1]))
        merged = SubNetwork(channels, blocks, resolution)
    return merged

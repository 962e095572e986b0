"""Index maps from the current tensor to the next one, and the copy they drive.

One `AxisMap` an axis serves the parameter, its gradient, its optimizer state and its EMA copies alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from ..dense.network import Network
from ..dense.subnet import FIXED, Role, Structure, SubNetwork, TensorLayout
from ..machine.placement import on_cpu
from .resample import Regrid, resample


@dataclass(frozen=True)
class AxisMap:
    """Where the positions of one axis come from.

    Attributes:
        source: for each new position, an old one: the same channel's where it was alive, else the channel
            that a copying operator would take (the group's channels in turn).
        carried: for each new position, whether its channel was alive.
    """

    source: torch.Tensor
    carried: torch.Tensor

    @property
    def copies(self) -> torch.Tensor:
        """For each new position, how many new positions have its source: 1 where nothing is copied."""
        return torch.bincount(self.source)[self.source]


@dataclass(frozen=True)
class TensorMap:
    """How one tensor changes: a map for each axis whose channels change, then another grid.

    Attributes:
        name, role: which tensor.
        old_shape, new_shape: before, and after the change of channels.
        axes: a map for each axis that changes.
        groups: number of groups of the convolution after the morph, 1 for everything else.
        grid_shape: the shape in the end, where the tensor follows the resolution; otherwise `new_shape`.
        change: the change of resolution, where there is one.
    """

    name: str
    role: Role
    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    axes: tuple[AxisMap | None, ...]
    groups: int
    grid_shape: tuple[int, ...]
    change: Regrid | None = None

    @property
    def grows(self) -> bool:
        """Whether there are entries to fill."""
        return any(axis is not None and not bool(axis.carried.all()) for axis in self.axes)

    @property
    def carried(self) -> int:
        """Number of entries carried over bit for bit."""
        return (
            0
            if self.regrids
            else prod(
                size if axis is None else int(axis.carried.sum())
                for size, axis in zip(self.new_shape, self.axes, strict=True)
            )
        )

    @property
    def regrids(self) -> bool:
        """Whether the entries are interpolated to another grid, so that none is carried bit for bit."""
        return self.grid_shape != self.new_shape

    def regrid(self, tensor: torch.Tensor, *, smooth: bool = True) -> torch.Tensor:
        """A tensor of `new_shape` at the grid after the morph; see `resample`."""
        if not self.regrids or self.change is None:
            return tensor
        return like(resample(tensor, self.grid_shape, self.change, name=self.name, smooth=smooth), tensor)

    def survivors_of_old(self, old: torch.Tensor) -> torch.Tensor:
        """The entries of the old tensor that are carried over."""
        for dim, axis in enumerate(self.axes):
            if axis is not None:
                old = old.index_select(dim, axis.source[axis.carried].to(old.device))
        return old

    def survivors(self, new: torch.Tensor) -> torch.Tensor:
        """The same entries in the new tensor."""
        for dim, axis in enumerate(self.axes):
            if axis is not None:
                new = new.index_select(dim, axis.carried.nonzero().flatten().to(new.device))
        return new

    def select(self, old: torch.Tensor) -> torch.Tensor:
        """The new tensor with every new entry copied from the old channel that is its source."""
        new = old
        for dim, axis in enumerate(self.axes):
            if axis is not None:
                new = new.index_select(dim, axis.source.to(old.device))
        return like(new, old)

    @property
    def reads(self) -> tuple[int, ...]:
        """The axes along which a weight sums over channels. A convolution that gains whole groups sums within each."""
        return self.role.ins if self.role.kind == "weight" and not self.role.blockwise else ()

    def divide(self, old: torch.Tensor) -> torch.Tensor:
        """`select`, with each input weight divided among the copies of its input, so that they add up to the old one.

        With inputs that are copied alike, the old outputs stay what they were, and new ones are copies of them
        (Net2Net, equation 2; bert2BERT, section 3.3).
        """
        new = self.select(old)
        for read in self.reads:
            axis = self.axes[read]
            if axis is not None:
                shape = [-1 if dim == read else 1 for dim in range(new.ndim)]
                new.div_(axis.copies.view(shape).to(new.device))
        return new

    def replace_outputs(self, new: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`new`, in place, with everything that belongs to new outputs from `other`; what reads new inputs stays."""
        for dim, axis in enumerate(self.axes):
            if axis is not None and dim not in self.reads:
                fresh = (~axis.carried).nonzero().flatten().to(new.device)
                new.index_copy_(dim, fresh, other.index_select(dim, fresh))
        return new

    def carry(self, old: torch.Tensor, fill: float | torch.Tensor = 0.0) -> torch.Tensor:
        """The new tensor: what was alive carried over, the rest `fill`."""
        new = self.select(old)
        for dim, axis in enumerate(self.axes):
            if axis is not None and not bool(axis.carried.all()):
                missing = (~axis.carried).nonzero().flatten().to(old.device)
                if isinstance(fill, torch.Tensor):
                    new.index_copy_(dim, missing, fill.index_select(dim, missing))
                else:
                    new.index_fill_(dim, missing, fill)
        return new


def like(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """`new` in the memory format of `old`."""
    for dims, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if old.ndim == dims and old.stride() == _strides(old, memory_format) != _strides(old, torch.contiguous_format):
            # `.contiguous` leaves strides as they are where axes of size 1 make both formats true, and the
            # format would be lost when such an axis grows.
            return torch.empty_like(new, memory_format=memory_format).copy_(new)
    return new.contiguous()


def _strides(tensor: torch.Tensor, memory_format: torch.memory_format) -> tuple[int, ...]:
    return torch.empty(tensor.shape, device="meta", memory_format=memory_format).stride()


@on_cpu
def map_tensors(network: Network, current: SubNetwork, target: SubNetwork) -> dict[str, TensorMap]:
    """The map of every tensor that is in two sub-networks of one dense network and changes between them."""
    structure = network.structure
    old, new = structure.alive_mask(current), structure.alive_mask(target)
    old_grid, new_grid = network.grids.at(current.resolution).shapes, network.grids.at(target.resolution).shapes
    source = _source_units(structure, old, new)
    regrid = None
    if current.resolution is not None and target.resolution is not None:
        regrid = Regrid(current.resolution, target.resolution)
    both = structure.present(current).keys() & structure.present(target).keys()
    both -= network.grids.buffers(target.resolution).keys()  # made anew, not mapped
    maps = {}
    for name, layout in structure.tensors.items():
        if name not in both:
            continue
        axes = tuple(None if axis is None else _map_axis(axis, old, new, source) for axis in layout.axes)
        before, after = old_grid.get(name), new_grid.get(name)
        if before != after or any(axis is not None for axis in axes):
            new_shape = layout.alive_shape(new, before)
            maps[name] = TensorMap(
                name,
                layout.role,
                layout.alive_shape(old, before),
                new_shape,
                axes,
                _groups(layout, new_shape),
                layout.alive_shape(new, after),
                regrid,
            )
    return maps


def _groups(layout: TensorLayout, shape: tuple[int, ...]) -> int:
    role = layout.role
    return shape[0] // (layout.shape[0] // role.groups) if role.blockwise else role.groups


def _source_units(structure: Structure, alive: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """For each unit, itself; for one that enters, the units alive in its group, each in turn.

    In turn, all have equally many copies where the ratio is whole; then copying by `divide` is exact through layer
    normalisation too.
    """
    source = torch.arange(len(alive))
    groups = structure.unit_groups()
    for number in range(len(structure.groups)):
        units = (groups == number).nonzero().flatten()
        old, new = units[alive[units]], units[target[units] & ~alive[units]]
        source[new] = old[torch.arange(len(new)) % len(old)]
    source[-1] = FIXED
    if len(structure.products):  # a product comes from the product of its factors' sources
        units, (count, width) = torch.arange(len(groups)), structure.products.shape
        alone = torch.full((len(units) - count, width), FIXED)
        alone[:, 0] = units[: len(alone)]
        known, wanted = _factors(torch.cat([alone, structure.products])), _factors(source[structure.products])
        _, same = torch.cat([known, wanted]).unique(dim=0, return_inverse=True)
        row = torch.full((int(same.max()) + 1,), FIXED)
        row[same[: len(known)]] = units
        source[len(alone) : -1] = row[same[len(known) :]]
    return source


def _factors(products: torch.Tensor) -> torch.Tensor:
    """Rows of units as sets: sorted, each unit once, filled up with FIXED; a unit times itself is that unit."""
    rows = products.sort(dim=1).values
    again = torch.zeros_like(rows, dtype=torch.bool)
    again[:, 1:] = rows[:, 1:] == rows[:, :-1]
    return rows.masked_fill(again, FIXED).sort(dim=1).values


def _map_axis(axis: torch.Tensor, old: torch.Tensor, new: torch.Tensor, source: torch.Tensor) -> AxisMap | None:
    """Map one axis whose positions belong to the units `axis`; None where nothing changes."""
    was, will = old[axis], new[axis]
    if torch.equal(was, will):
        return None
    # The source of a position is the position of the same rank within the source unit: a unit has several
    # positions where it is a group of channels, or a channel that was flattened with its space.
    order = torch.argsort(axis, stable=True)
    start = torch.searchsorted(axis[order], axis)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(axis)) - start[order]
    first, end = (torch.searchsorted(axis[order], source[axis], right=right) for right in (False, True))
    of_source = order[first + rank % (end - first).clamp_min(1)]  # channel 1 by itself has one, by channel 2 two
    dense = torch.where(axis == FIXED, torch.arange(len(axis)), of_source)[will]
    position = was.cumsum(0) - 1  # dense position -> position in the current tensor
    return AxisMap(position[dense], was[will])

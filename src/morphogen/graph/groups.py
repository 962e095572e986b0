"""From ties to channel groups: units with the same members are one group; positions learn their unit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..dense.subnet import FIXED, ChannelGroup, PinnedAxis, Role
from ..machine.placement import on_cpu
from .numbers import Attribute
from .rules.table import OF_INPUT
from .slots import ALWAYS, Axis, Slots
from .units import Units, solve


@dataclass(frozen=True)
class TracedTensor:
    """A parameter or buffer of the dense network with the slots of its axes."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    role: Role


@dataclass(frozen=True)
class Groups:
    """What the slots of a model come to.

    Attributes:
        groups: the channel groups.
        pinned: axes that stay whole for a stated reason.
        products: for each unit that is a product, the numbers of its factors, filled up with FIXED; their own
            numbers follow those of the groups.
        number: for each slot the number of its unit.
    """

    groups: tuple[ChannelGroup, ...]
    pinned: tuple[PinnedAxis, ...]
    products: torch.Tensor
    number: torch.Tensor


@on_cpu
def derive_groups(
    slots: Slots, tensors: Mapping[str, TracedTensor], attributes: Mapping[Attribute, Axis], learned: Collection[str]
) -> Groups:
    """Channel groups, what is pinned and why, and for each slot the number of its unit.

    Args:
        slots: all that rules said of them.
        tensors: the model's parameters and buffers in the model's order, which names and orders the groups.
        attributes: what modules' numbers count; they name groups that share their axes with others (`num_heads`).
        learned: the names of the parameters; what none of them follows is no channel (a table of masks, of strides),
            and what they read from a buffer alone (a table of coordinates) is as fixed as the model's input.
    """
    units = solve(slots)
    axes = [
        (name, dim, units.of[axis])
        for name, tensor in tensors.items()
        for dim, axis in enumerate(tensor.axes)
        if axis is not None
    ]
    group_of = _group_by_members(slots, units, [axis for _, _, axis in axes])
    members: dict[int, list[_Place]] = {}
    for name, dim, axis in axes:
        factors = units.factors[axis]
        of = group_of[factors].masked_fill(factors == ALWAYS, FIXED)
        for group in of[of != FIXED].unique().tolist():
            members.setdefault(group, []).append(_Place(name, dim, factors, of))
    members = {group: places for group, places in members.items() if any(p.name in learned for p in places)}
    reasons = dict(units.reasons)
    for group, places in list(members.items()):
        if _is_given([(tensors[place.name].role, place.dim, place.name in learned) for place in places]):
            reasons |= dict.fromkeys(places[0].factors[places[0].groups == group].tolist(), OF_INPUT)
            del members[group]
    counted = _counted(attributes, units, group_of)

    number = torch.full((slots.count,), FIXED)  # unit (a slot) -> its number through all groups
    groups: list[ChannelGroup] = []
    taken: set[str] = set()
    total = 0
    for group, places in members.items():
        place = next((p for p in places if _produces(tensors[p.name].role, p.dim)), places[0])
        mine = place.groups == group
        positions = mine.any(1).nonzero().flatten()
        ordered = _unique_in_order(place.factors[mine])
        number[ordered] = torch.arange(total, total + len(ordered))
        total += len(ordered)
        inner = place.is_inner(group)
        if inner is None:
            label = _label(place.name, positions, len(mine))
        else:
            label = counted.get(group, f"{_owner(place.name)}.{'inner' if inner else 'outer'}")
        while label in taken:
            label += "'"
        taken.add(label)
        paths = tuple(f"{p.name}[{p.dim}]" for p in places)
        groups.append(ChannelGroup(label, len(ordered), len(positions), paths, bool(inner)))
    derived = ((units.factors != ALWAYS).sum(1) > 1).nonzero().flatten()
    products, same = number[units.factors[derived]].unique(dim=0, return_inverse=True)
    number[derived] = total + same
    return Groups(tuple(groups), _pinned(axes, reasons), products, number[units.of])


@dataclass(frozen=True)
class _Place:
    """An axis of a tensor that members of a group are on: factors and their groups, (positions, factors)."""

    name: str
    dim: int
    factors: torch.Tensor
    groups: torch.Tensor

    def is_inner(self, group: int) -> bool | None:
        """Whether another group that these positions hang on changes more slowly along the axis; None for none."""
        positions = (self.groups == group).any(1)
        others = self.groups[positions].unique().tolist()
        changes = {
            each: int((unit[1:] != unit[:-1]).sum())
            for each in others
            if each != FIXED
            for unit in [self.factors[positions].masked_fill(self.groups[positions] != each, 0).amax(1)]
        }
        return None if len(changes) == 1 else changes[group] > min(changes.values())


def _counted(attributes: Mapping[Attribute, Axis], units: Units, group_of: torch.Tensor) -> dict[int, str]:
    """The names of numbers that count a whole group and nothing else."""
    names: dict[int, str] = {}
    for attribute, axis in attributes.items():
        if axis is None:
            continue
        of = units.of[axis]
        group = group_of[of].unique()
        if bool((units.factors[of][:, -1] == of).all()) and len(group) == 1 and len(of.unique()) == len(of):
            names.setdefault(int(group), f"{attribute.path}.{attribute.name}".lstrip("."))
    return names


def _group_by_members(slots: Slots, units: Units, axes: list[torch.Tensor]) -> torch.Tensor:
    """For each unit, the smallest unit that occurs equally often on every axis (compared by random keys)."""
    generator = torch.Generator().manual_seed(0)

    def key() -> torch.Tensor:
        return torch.randint(-(2**62), 2**62, (1,), generator=generator)

    signature = torch.zeros(slots.count, dtype=torch.long)
    for axis in axes:
        factors = units.factors[axis].flatten()
        signature.index_add_(0, factors, key().expand(len(factors)))
    for product in slots.products:  # eight heads of size eight occur equally often, and are not sizes
        for factor in product.factors:
            signature[units.of[factor].unique()] += key()
    _, same = signature.unique(return_inverse=True)
    first = torch.full((int(same.max()) + 1,), slots.count)
    return first.scatter_reduce(0, same, torch.arange(slots.count), "amin")[same]


def _is_given(places: Sequence[tuple[Role, int, bool]]) -> bool:
    """Whether a buffer alone gives these axes (role, axis, whether it is learned): no weight writes them, and no
    parameter is added to them."""
    made = any(_produces(role, dim) or (learned and role.kind == "direct") for role, dim, learned in places)
    return not made and any(role.kind == "direct" for role, _, _ in places)


def _produces(role: Role, dim: int) -> bool:
    """Whether this axis is where a layer writes its channels, the natural place to name a group after."""
    return role.kind == "weight" and dim in role.outs


def _unique_in_order(values: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(dict.fromkeys(values.tolist())), dtype=torch.long)


def _label(name: str, positions: torch.Tensor, size: int) -> str:
    """Path of the layer that owns the tensor, with the range of positions where it is only a part."""
    owner = _owner(name)
    return owner if len(positions) == size else f"{owner}[{int(positions[0])}:{int(positions[-1]) + 1}]"


def _owner(name: str) -> str:
    return name.rpartition(".")[0] or name


def _pinned(axes: list[tuple[str, int, torch.Tensor]], reasons: dict[int, str]) -> tuple[PinnedAxis, ...]:
    """Axes that hold a unit which some rule, or the user, fixed for a stated reason."""
    result = []
    for name, dim, axis in axes:
        stated = [unit for unit in axis.unique().tolist() if reasons.get(unit)]
        if stated:
            size = int(torch.isin(axis, torch.tensor(stated)).sum())
            result.append(PinnedAxis(f"{name}[{dim}]", size, reasons[stated[0]]))
    return tuple(result)

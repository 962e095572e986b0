"""From ties to channel groups: units with the same members are one group; positions learn their unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..subnet import FIXED, ChannelGroup, PinnedAxis, Role
from .slots import Axis, Slots


@dataclass(frozen=True)
class TracedTensor:
    """A parameter or buffer of the dense network with the slots of its axes."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    role: Role


def derive_groups(
    slots: Slots, tensors: Mapping[str, TracedTensor]
) -> tuple[tuple[ChannelGroup, ...], tuple[PinnedAxis, ...], torch.Tensor]:
    """Channel groups, what is pinned and why, and for each slot the number of its unit.

    Args:
        slots: all ties, collected.
        tensors: the model's parameters and buffers in the model's order, which names and orders the groups.
    """
    units, reasons = slots.solve()
    free = torch.ones(slots.count, dtype=torch.bool)
    free[list(reasons)] = False
    axes = [
        (name, dim, units[axis])
        for name, tensor in tensors.items()
        for dim, axis in enumerate(tensor.axes)
        if axis is not None
    ]
    group_of = _group_by_members(slots.count, [axis[free[axis]] for _, _, axis in axes])
    members: dict[int, list[tuple[str, int, torch.Tensor]]] = {}
    for name, dim, axis in axes:
        for group in group_of[axis[free[axis]]].unique().tolist():
            members.setdefault(group, []).append((name, dim, axis))

    number = torch.full((slots.count,), FIXED)  # unit (a slot) -> its number through all groups
    groups: list[ChannelGroup] = []
    taken: set[str] = set()
    total = 0
    for group, places in members.items():
        name, dim, axis = next(((n, d, a) for n, d, a in places if _produces(tensors[n].role, d)), places[0])
        positions = (group_of[axis] == group).nonzero().flatten()
        ordered = _unique_in_order(axis[positions])
        number[ordered] = torch.arange(total, total + len(ordered))
        total += len(ordered)
        label = _label(name, positions, len(axis))
        while label in taken:
            label += "'"
        taken.add(label)
        groups.append(ChannelGroup(label, len(ordered), len(positions), tuple(f"{n}[{d}]" for n, d, _ in places)))
    return tuple(groups), _pinned(axes, reasons), number[units]


def _group_by_members(count: int, axes: list[torch.Tensor]) -> torch.Tensor:
    """For each unit, the smallest unit that occurs equally often on every axis (compared by random keys)."""
    keys = torch.randint(-(2**62), 2**62, (len(axes),), generator=torch.Generator().manual_seed(0))
    signature = torch.zeros(count, dtype=torch.long)
    for axis, key in zip(axes, keys, strict=True):
        signature.index_add_(0, axis, key.expand(len(axis)))
    _, same = signature.unique(return_inverse=True)
    first = torch.full((int(same.max()) + 1,), count).scatter_reduce(0, same, torch.arange(count), "amin")
    return first[same]


def _produces(role: Role, dim: int) -> bool:
    """Whether this axis is where a layer writes its channels, the natural place to name a group after."""
    return role.kind == "weight" and dim == role.out_axis


def _unique_in_order(values: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(dict.fromkeys(values.tolist())), dtype=torch.long)


def _label(name: str, positions: torch.Tensor, size: int) -> str:
    """Path of the layer that owns the tensor, with the range of positions where it is only a part."""
    owner = name.rpartition(".")[0] or name
    return owner if len(positions) == size else f"{owner}[{int(positions[0])}:{int(positions[-1]) + 1}]"


def _pinned(axes: list[tuple[str, int, torch.Tensor]], reasons: dict[int, str]) -> tuple[PinnedAxis, ...]:
    """Axes that hold a unit which some rule, or the user, fixed for a stated reason."""
    result = []
    for name, dim, axis in axes:
        stated = [unit for unit in axis.unique().tolist() if reasons.get(unit)]
        if stated:
            size = int(torch.isin(axis, torch.tensor(stated)).sum())
            result.append(PinnedAxis(f"{name}[{dim}]", size, reasons[stated[0]]))
    return tuple(result)

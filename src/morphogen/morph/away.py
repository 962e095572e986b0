"""What of a network is out, as it was when it left: kept until it comes back, for operators that restore.

It is kept on the CPU, where there is room, since it is written once and read once: one tensor for each that has lost
something, in the shape of the dense network's. What has come back is let go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..dense.fake import tensor_named
from ..dense.grid import Resolution
from ..dense.network import Network
from ..dense.subnet import SubNetwork, TensorLayout
from ..errors import MorphError
from ..machine.reading import whole
from .blocks import is_learned
from .resample import Regrid, resample

MOST_PIXELS = 1_000_000
"""Of one side of an image, in a state."""


def begin_to_keep(network: Network) -> None:
    """Keep whatever leaves from here on.

    Raises:
        MorphError: something has left already, and nobody kept it.
    """
    if network.away is not None:
        return
    if replace(network.current, resolution=network.dense.resolution) != network.dense:
        raise MorphError(
            "`restore` brings back what was kept when it left, and some left before",
            expected="a network of full width and depth when `restore` is first named",
            found="a smaller one",
            todo="Name `restore` in the morph that makes the network small, too",
        )
    network.away = {}


def keep(network: Network, target: SubNetwork) -> None:
    """Before a morph: note what of each tensor leaves. Nothing where nobody asked for it."""
    if network.away is None:
        return
    structure, at = network.structure, network.current.resolution
    alive, stays, there = structure.alive_mask(network.current), structure.alive_mask(target), structure.present(target)
    made_anew = network.grids.buffers(at)
    for name, layout in structure.present(network.current).items():
        learned = is_learned(network, name) or name in network.constants
        if name in made_anew or not learned or (name in there and not _loses(layout, alive, stays)):
            continue
        tensor = tensor_named(network.model, name).detach().to("cpu", copy=True)
        before = _at(network, name, at)
        if before is None:
            before = tensor.new_zeros(network.grids.at(at).shapes.get(name, layout.shape))
        network.away[name] = _put(before, tensor, layout.places(alive)), at


def kept(network: Network, name: str, target: SubNetwork, resolution: Resolution | None) -> torch.Tensor | None:
    """A tensor of a sub-network, in which all that is out has the values it left with; None where none of it left.

    Entries that never left are of no meaning. One that follows the resolution is interpolated where it left at another.
    """
    dense, structure = _at(network, name, resolution), network.structure
    return None if dense is None else structure.tensors[name].part(dense, structure.alive_mask(target))


def let_go(network: Network) -> None:
    """After a morph: forget what is whole again."""
    structure, alive = network.structure, network.structure.alive_mask(network.current)
    there = structure.present(network.current)
    everything = torch.ones_like(alive)
    for name in list(network.away or {}):
        if name in there and not _loses(there[name], everything, alive):
            del (network.away or {})[name]


def state_of_away(network: Network) -> dict[str, Any]:
    """What is kept, as plain data and tensors; the tensors are never written again."""
    away = network.away or {}
    return {name: {"tensor": tensor, "resolution": size and list(size)} for name, (tensor, size) in away.items()}


def read_away(network: Network, state: Mapping[str, Any]) -> dict[str, tuple[torch.Tensor, Resolution | None]]:
    """The inverse; raises ValueError or KeyError for what this network cannot have kept."""
    away = {}
    for name, entry in state.items():
        tensor, size = entry["tensor"], entry["resolution"]
        at = None
        if network.dense.resolution is not None:
            at = whole(size[0], 1, MOST_PIXELS), whole(size[1], 1, MOST_PIXELS)
        shape = network.grids.at(at).shapes.get(name, network.structure.tensors[name].shape)
        dtype = tensor_named(network.fake.dense, name).dtype
        if not isinstance(tensor, torch.Tensor) or (tensor.shape, tensor.dtype) != (torch.Size(shape), dtype):
            raise ValueError(f"what was kept of {name} is not of shape {tuple(shape)}, {dtype}")
        away[name] = tensor.to("cpu"), at
    return away


def _loses(layout: TensorLayout, alive: torch.Tensor, stays: torch.Tensor) -> bool:
    return any(axis is not None and bool((alive[axis] & ~stays[axis]).any()) for axis in layout.axes)


def _at(network: Network, name: str, resolution: Resolution | None) -> torch.Tensor | None:
    """What is kept of a tensor, at the grid of a resolution."""
    if network.away is None or name not in network.away:
        return None
    dense, left_at = network.away[name]
    shape = tuple(network.grids.at(resolution).shapes.get(name, network.structure.tensors[name].shape))
    if tuple(dense.shape) == shape or left_at is None or resolution is None:
        return dense
    return resample(dense, shape, Regrid(left_at, resolution), name=name)


def _put(dense: torch.Tensor, part: torch.Tensor, places: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """`dense` with `part` where the places of all axes meet."""
    if not places:
        return part
    (axis, where), *others = places
    return dense.index_copy(axis, where, _put(dense.index_select(axis, where), part, others))

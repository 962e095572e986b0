"""The blocks that enter: the value of each of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..dense.fake import tensor_named
from ..dense.network import Network
from ..dense.subnet import BlockStack, SubNetwork, is_inside
from ..errors import MorphError
from .constants import constant_at
from .entry import DepthGrowth, Entry


@dataclass(frozen=True)
class Entering:
    """A block that enters.

    Attributes:
        stack: where it belongs.
        path: its module path.
        unit: the position of its unit.
        tensors: the names of its tensors.
        staying: the units that are alive before and after the morph.
    """

    stack: BlockStack
    path: str
    unit: int
    tensors: tuple[str, ...]
    staying: tuple[int, ...]

    def counterparts(self, name: str) -> list[str]:
        """The same tensor of the staying units, the nearest first, those below before those above."""
        nearest = sorted(self.staying, key=lambda unit: (abs(unit - self.unit), unit))
        return [self.stack.counterpart(name, self.unit, unit) for unit in nearest]


def entering_blocks(network: Network, current: SubNetwork, target: SubNetwork) -> Iterator[Entering]:
    """The blocks that are out of `current` and in `target`.

    Raises:
        MorphError: a stack would lose all its blocks for others.
    """
    for stack in network.stacks:
        before, after = current.blocks[stack.name], target.blocks[stack.name]
        staying = tuple(unit for unit in after if unit in before)
        if not staying:
            raise MorphError(
                "none of the blocks that are alive would stay",
                where=stack.name,
                expected=f"at least one of {before}",
                found=f"{after}",
                todo="Go by way of a sub-network that has blocks of both",
            )
        for unit in after:
            if unit not in before:
                for path in stack.units[unit]:
                    names = tuple(name for name in network.structure.tensors if is_inside(name, path))
                    yield Entering(stack, path, unit, names, staying)


def fill_block(
    network: Network,
    target: SubNetwork,
    block: Entering,
    growth: DepthGrowth,
    online: Callable[[str], torch.Tensor],
    averaged: Callable[[str], torch.Tensor],
    left: Callable[[str], torch.Tensor | None],
    generator: torch.Generator | None,
) -> dict[str, torch.Tensor]:
    """The value of every tensor of an entering block, by name.

    Args:
        network: before the morph.
        target: the sub-network after it.
        block: which block.
        growth: the depth operator.
        online: the values after the morph of tensors that were alive, by name.
        averaged: the same of the momentum network.
        left: what was kept of a tensor, in the shape it will have, where the operator restores.
        generator: random numbers for the operator.

    Raises:
        MorphError: the operator returned an unfit value, or blocks of this stack are of different widths.
    """
    alive = network.structure.alive_mask(target)
    grid_buffers = network.grids.buffers(target.resolution)
    values: dict[str, torch.Tensor] = {}
    device = next(network.model.parameters()).device
    for name in block.tensors:
        layout = network.structure.tensors[name]
        twin = online(block.counterparts(name)[0])
        shape = layout.alive_shape(alive, network.grids.at(target.resolution).shapes.get(name))
        if name in grid_buffers:
            buffer = grid_buffers[name]
            if buffer is not None:
                values[name] = buffer.to(device, copy=True)
            continue
        own = tensor_named(network.outside[block.path], name[len(block.path) + 1 :])
        constant = constant_at(network, name, target, own, shape)
        if constant is not None:
            values[name] = constant.to(twin, copy=True)
            continue
        if not is_learned(network, name):  # tables and counters that the blocks of a stack have in common
            values[name] = twin.detach().clone()
            continue
        if tuple(twin.shape) != shape and not growth.restores:
            raise MorphError(
                "the blocks of this stack have different widths, so that none can be copied",
                where=name,
                expected=f"shape {shape}",
                found=f"shape {tuple(twin.shape)} in {block.counterparts(name)[0]}",
                todo="Grow the depth first, or give the stack's blocks the same channels",
            )
        back = left(name)
        entry = Entry(
            name,
            layout.role,
            block.stack,
            block.unit,
            block.staying,
            target.blocks[block.stack.name],
            network.initial.get(name),
            lambda other: online(other).detach().clone(),  # a stranger may write into what it is given
            lambda other: averaged(other).detach().clone(),
            generator,
            None if back is None else back.to(twin, copy=True),
        )
        value = growth.fill(entry)
        if not isinstance(value, torch.Tensor) or (tuple(value.shape), value.dtype, value.device) != (
            shape,
            twin.dtype,
            twin.device,
        ):
            found = f"{tuple(value.shape)}, {value.dtype}, {value.device}" if isinstance(value, torch.Tensor) else value
            raise MorphError(
                "the depth operator returned an unfit value",
                where=name,
                expected=f"a tensor of {shape}, {twin.dtype}, {twin.device}",
                found=f"{found}",
            )
        values[name] = value
    return values


def is_learned(network: Network, name: str) -> bool:
    """Whether a tensor is a parameter or a running statistic; other buffers are tables, masks and counters."""
    dense = tensor_named(network.fake.dense, name)
    return isinstance(dense, nn.Parameter) or network.structure.tensors[name].role.kind in ("mean", "variance")

"""The blocks that enter: the value of each of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import MorphError
from ..fake import tensor_named
from ..network import Network
from ..subnet import BlockStack, SubNetwork, is_inside
from .entry import DepthGrowth, Entry


@dataclass(frozen=True)
class Entering:
    """A block that enters.

    Attributes:
        stack: where it belongs.
        path: its module path.
        unit: the position of its unit.
        tensors: the names of its tensors.
        below: the old unit nearest by.
    """

    stack: BlockStack
    path: str
    unit: int
    tensors: tuple[str, ...]
    below: int

    def counterpart(self, name: str) -> str:
        """The same tensor of the old block nearest by."""
        return self.stack.counterpart(name, self.unit, self.below)


def entering_blocks(network: Network, target: SubNetwork) -> Iterator[Entering]:
    """The blocks that are out now and in `target`."""
    for stack in network.stacks:
        before = network.current.blocks[stack.name]
        for unit in target.blocks[stack.name]:
            if unit not in before:
                below = max((other for other in before if other < unit), default=before[0])
                for path in stack.units[unit]:
                    names = tuple(name for name in network.structure.tensors if is_inside(name, path))
                    yield Entering(stack, path, unit, names, below)


def fill_block(
    network: Network,
    target: SubNetwork,
    block: Entering,
    growth: DepthGrowth,
    online: Callable[[str], torch.Tensor],
    averaged: Callable[[str], torch.Tensor],
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
        generator: random numbers for the operator.

    Raises:
        MorphError: the operator returned an unfit value, or blocks of this stack are of different widths.
    """
    alive = network.structure.alive_mask(target)
    grid_buffers = network.grid_buffers(target.resolution)
    values: dict[str, torch.Tensor] = {}
    for name in block.tensors:
        layout = network.structure.tensors[name]
        twin = online(block.counterpart(name))
        shape = layout.alive_shape(alive, network.grid(target.resolution).shapes.get(name))
        if name in grid_buffers:
            buffer = grid_buffers[name]
            if buffer is not None:
                values[name] = buffer.to(twin.device)
            continue
        dense = tensor_named(network.fake.dense, name)
        learned = isinstance(dense, nn.Parameter) or layout.role.kind in ("mean", "variance")
        if tuple(twin.shape) != shape:
            raise MorphError(
                "the blocks of this stack have different widths, so that none can be copied",
                where=name,
                expected=f"shape {shape}",
                found=f"shape {tuple(twin.shape)} in {block.counterpart(name)}",
                todo="Grow the depth first, or give the stack's blocks the same channels",
            )
        if not learned:  # tables and counters that the blocks of a stack have in common
            values[name] = twin.detach().clone()
            continue
        entry = Entry(
            name,
            layout.role,
            block.stack,
            block.unit,
            network.current.blocks[block.stack.name],
            target.blocks[block.stack.name],
            network.initial.get(name),
            online,
            averaged,
            generator,
        )
        value = growth.fill(entry)
        if not isinstance(value, torch.Tensor) or (value.shape, value.dtype, value.device) != (
            twin.shape,
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

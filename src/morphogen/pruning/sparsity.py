"""What the weights say may go: channels, and whole blocks (PruneTrain, sections 4.1 and 4.2)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch

from ..dense.fake import tensor_named
from ..dense.network import Network
from ..dense.subnet import FIXED, BlockStack, ChannelGroup, SubNetwork, within
from ..machine.placement import on_cpu
from .axes import channel_axes
from .folded import folded_weight


@on_cpu
def sparse_part(network: Network, threshold: float, multiple_of: int = 1, *, folded: bool = False) -> SubNetwork:
    """The present sub-network without what is sparse.

    A block goes when each of its residual branches leads through a convolution or linear layer that is empty, which the
    overlap of input and output channels brings about (section 4.1). A channel goes when it is sparse in every layer
    that writes or reads it (channel union, section 4.2), a head when all of its channels are; the layers of blocks that
    go do not count. At least one
    block of a stack and one unit of a group stay, the strongest, with a warning.

    Args:
        network: at the sub-network in question; nothing is changed.
        threshold: a channel, or a layer, is sparse where no weight's absolute value is as large. NaN counts as large.
        folded: judge weights with the batch norm behind them folded in.
        multiple_of: channels of a group stay at a multiple of this, or all: of those about to go the strongest stay.
    """
    current = network.current

    def weight(name: str) -> torch.Tensor:
        return folded_weight(network, name) if folded else tensor_named(network.model, name).detach()

    blocks = {
        stack.name: _blocks_left(weight, stack, current.blocks[stack.name], threshold) for stack in network.stacks
    }
    left = replace(current, blocks=blocks)
    gone = frozenset(network.structure.absent(left))
    products = network.structure.products
    total = sum(group.size for group in network.groups)
    strength = torch.full((total + len(products),), -1.0, dtype=torch.float64)
    for name, axes in channel_axes(network).items():
        if within(name, gone):
            continue
        for axis in axes:
            strength.scatter_reduce_(0, axis.units, axis.maxima(weight(name)).double().cpu(), "amax")
    for factor in products.unbind(1):  # a head is as strong as the strongest of its channels
        known = factor != FIXED
        strength.scatter_reduce_(0, factor[known], strength[total:][known], "amax")
    channels, start = {}, 0
    for group in network.groups:
        mine = strength[start : start + group.size]
        alive = current.channels[group.name]
        # The size of heads stays: attention's scale may follow it, so that removal would change the function.
        left_of = alive if group.inner else _units_left(group, alive, mine, threshold, multiple_of)
        channels[group.name] = left_of
        start += group.size
    return replace(left, channels=channels)


def _blocks_left(
    weight: Callable[[str], torch.Tensor], stack: BlockStack, alive: tuple[int, ...], threshold: float
) -> tuple[int, ...]:
    """The positions of a stack's units that do something."""

    def largest(name: str) -> float:
        return float(weight(name).abs().max().nan_to_num(float("inf")))

    def weakest_link(unit: int) -> float:
        """Of its strongest branch, the largest weight of the layer that lets through least."""
        branches = [min(map(largest, branch), default=float("inf")) for branch in stack.bottlenecks[unit]]
        return max(branches, default=float("inf"))

    if not stack.bottlenecks:
        return alive
    links = {unit: weakest_link(unit) for unit in alive}
    left = tuple(unit for unit in alive if links[unit] >= threshold)
    if not left:
        left = (max(alive, key=links.__getitem__),)
        _tell(f"all blocks of the stack {stack.name} are sparse; {stack.units[left[0]][0]} is kept")
    return left


def _units_left(
    group: ChannelGroup, alive: tuple[int, ...], strength: torch.Tensor, threshold: float, multiple_of: int
) -> tuple[int, ...]:
    """The units of a group that are in use, and as many of the strongest others as its multiple wants."""
    mine = strength[list(alive)].nan_to_num(float("inf"))
    if bool((mine < 0).all()):  # in no layer that stays: there is nothing to judge it by
        return alive
    used = int((mine >= threshold).sum())
    if not used:
        _tell(f"all channels of {group.name} are sparse; the strongest is kept")
    order = mine.argsort(descending=True, stable=True)
    return tuple(sorted(alive[i] for i in order[: group.rounded_up(max(1, used), multiple_of)].tolist()))


def _tell(what: str) -> None:
    warnings.warn(f"{what}. A smaller penalty ratio keeps more", stacklevel=4)

"""What every tensor will be after a morph: computed in full before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn

from ..dense.fake import tensor_named
from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import MorphError
from .away import kept
from .blocks import Entering, fill_block, is_learned
from .constants import constant_at
from .entry import DepthGrowth
from .exchange import tensors_of
from .growth import OPERATORS, Gap, WidthGrowth
from .tensors import TensorMap


@dataclass(frozen=True)
class Values:
    """The tensors of a network after a morph, by name.

    Attributes:
        staying: new values of parameters and buffers that were there before; those not named keep theirs.
        entering: the tensors of the blocks that come in.
        buffers: buffers that follow the resolution, None where there is none at this one.
    """

    staying: Mapping[str, torch.Tensor]
    entering: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor | None]


def compute_values(
    network: Network,
    target: SubNetwork,
    maps: Mapping[str, TensorMap],
    blocks: Iterable[Entering],
    fill: WidthGrowth,
    growth: DepthGrowth,
    momentum: nn.Module | None,
    above: Mapping[str, str],
    generator: torch.Generator | None,
) -> Values:
    """Fill what is new of the tensors that stay, then the blocks that enter.

    Args:
        network: before the morph.
        target: the sub-network after it.
        maps: how the tensors that stay change.
        blocks: those that enter.
        fill, growth: the growth operator, for channels, and the depth operator, for blocks.
        momentum: the momentum network, if there is one.
        above: what `blocks_above` says.
        generator: random numbers for the operators.

    Raises:
        MorphError: an operator returned an unfit value.
    """
    structure, model = network.structure, network.model
    names = structure.present(network.current).keys() & structure.present(target).keys()
    live = {name: tensor_named(model, name) for name in structure.tensors if name in names}
    means = {} if momentum is None else {name: tensor_named(momentum, name) for name in live}
    everything = growth.everything and momentum is not None
    base = live
    if everything:
        base = {name: means[name].to(t) if is_learned(network, name) else t for name, t in live.items()}

    def upper(name: str) -> torch.Tensor | None:
        return base[above[name]].detach() if name in above else None

    def grown(name: str, change: TensorMap) -> torch.Tensor:
        constant = constant_at(network, name, target, live[name], change.grid_shape)
        if constant is not None:
            return constant if change.regrids else change.carry(live[name].detach(), constant)
        back = kept(network, name, target, network.current.resolution) if fill.restores and change.grows else None
        return change.regrid(_fill(change, base[name].detach(), upper(name), fill, generator, back))

    new = {name: grown(name, change) for name, change in maps.items()}
    new |= {name: base[name].detach().clone() for name in base if base[name] is not live[name] and name not in maps}

    def online(name: str) -> torch.Tensor:
        return new[name] if name in new else live[name]

    def averaged(name: str) -> torch.Tensor:
        if momentum is None:
            raise MorphError("the depth operator reads a momentum network, but there is none", where=name)
        if name not in maps:
            return means[name]
        its = fill_of(network, name, live[name], fill)
        return carried_average(network, maps[name], momentum, new[name], its, above)

    def left(name: str) -> torch.Tensor | None:
        return kept(network, name, target, target.resolution) if growth.restores else None

    fresh: dict[str, torch.Tensor] = {}
    for block in blocks:
        fresh |= fill_block(network, target, block, growth, online, averaged, left, generator)
    device = next(iter(live.values())).device if live else network.fake.device
    buffers = {
        name: value if value is None else value.to(device)
        for name, value in network.grids.buffers(target.resolution).items()
    }
    return Values({name: value for name, value in new.items() if name not in buffers}, fresh, buffers)


def fill_of(network: Network, name: str, tensor: torch.Tensor, fill: WidthGrowth) -> WidthGrowth:
    """How a tensor grows: what does not learn is not divided."""
    return replace(fill, rescales=False) if network.is_constant(name, tensor) else fill


def blocks_above(network: Network, target: SubNetwork) -> dict[str, str]:
    """For each tensor of a block that stays, the same tensor of the next one of its stack that stays, by name."""
    above = {}
    for stack in network.stacks:
        staying = sorted({*network.current.blocks[stack.name]} & {*target.blocks[stack.name]})
        for unit, upper in pairwise(staying):
            blocks = {path: network.model.get_submodule(path) for path in stack.units[unit]}
            above |= {name: stack.counterpart(name, unit, upper) for name in tensors_of(blocks)}
    return above


def carried_average(
    network: Network,
    change: TensorMap,
    tree: nn.Module,
    new: torch.Tensor,
    fill: WidthGrowth,
    above: Mapping[str, str],
) -> torch.Tensor:
    """A tensor of an averaged copy after the morph.

    Its new channels have the value `new` has; but where the operator rescales what was alive, the copy is grown by
    it too (by its default settings, that is without noise): old and new weights belong together then.
    """
    average = tensor_named(tree, change.name).detach()
    if fill.rescales:
        upper = tensor_named(tree, above[change.name]).detach() if change.name in above else None
        return change.regrid(_fill(change, average, upper, replace(fill, settings={}), None))
    if change.regrids and network.is_constant(change.name, tensor_named(network.model, change.name)):
        return new.to(average, copy=True)
    if change.regrids:
        return change.regrid(change.select(average))
    return change.carry(average, new.to(average))


def _fill(
    change: TensorMap,
    old: torch.Tensor,
    above: torch.Tensor | None,
    fill: WidthGrowth,
    generator: torch.Generator | None,
    back: torch.Tensor | None = None,
) -> torch.Tensor:
    """The new value of one tensor, checked."""
    if not change.grows:
        return change.carry(old)
    if above is not None and above.shape != old.shape:
        above = None
    gap = Gap(change, old, generator, above, back)
    if not any(fill.fill is entry.fill for entry in OPERATORS.values()):  # a stranger may write into what it is given
        gap = replace(gap, old=old.clone(), above=None if above is None else above.clone())
    new = fill.fill(gap, **fill.settings)
    if not isinstance(new, torch.Tensor) or (new.shape, new.dtype, new.device) != (
        change.new_shape,
        old.dtype,
        old.device,
    ):
        raise MorphError(
            "the growth operator returned an unfit value",
            where=change.name,
            expected=f"a tensor of {change.new_shape}, {old.dtype}, {old.device}",
            found=f"{tuple(new.shape)}, {new.dtype}, {new.device}" if isinstance(new, torch.Tensor) else repr(new),
        )
    was = change.survivors(change.divide(old)) if fill.rescales else change.survivors_of_old(old)
    kept, was = change.survivors(new).contiguous(), was.contiguous()
    same = old.is_meta or torch.equal(kept.view(torch.uint8), was.view(torch.uint8))  # bits, so that NaN equals itself
    if not same:
        begin = "divide" if fill.rescales else "carry"
        raise MorphError(
            "the growth operator changed what was alive",
            where=change.name,
            expected=f"the old entries as `gap.map.{begin}` has them",
            todo=f"Begin with gap.map.{begin}(gap.old), and leave gap.old as it is",
        )
    return new

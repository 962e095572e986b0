"""What every tensor will be after a morph: computed in full before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import MorphError
from ..fake import tensor_named
from ..network import Network
from ..subnet import SubNetwork
from .blocks import Entering, fill_block, is_learned
from .entry import DepthGrowth
from .growth import OPERATORS, Gap, GrowthOperator
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
    fill: GrowthOperator,
    growth: DepthGrowth,
    momentum: nn.Module | None,
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
    new = {name: change.regrid(_fill(change, base[name].detach(), fill, generator)) for name, change in maps.items()}
    new |= {name: base[name].detach().clone() for name in base if base[name] is not live[name] and name not in maps}

    def online(name: str) -> torch.Tensor:
        return new[name] if name in new else live[name]

    def averaged(name: str) -> torch.Tensor:
        if momentum is None:
            raise MorphError("the depth operator reads a momentum network, but there is none", where=name)
        return carried_average(maps[name], means[name], new[name]) if name in maps else means[name]

    fresh: dict[str, torch.Tensor] = {}
    for block in blocks:
        fresh |= fill_block(network, target, block, growth, online, averaged, generator)
    device = next(iter(live.values())).device if live else network.fake.device
    buffers = {
        name: value if value is None else value.to(device)
        for name, value in network.grids.buffers(target.resolution).items()
    }
    return Values({name: value for name, value in new.items() if name not in buffers}, fresh, buffers)


def carried_average(change: TensorMap, average: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """An averaged tensor after the morph; its new channels have the value `new` has."""
    if change.regrids:
        return change.regrid(change.select(average.detach()))
    return change.carry(average.detach(), new.to(average))


def _fill(
    change: TensorMap, old: torch.Tensor, fill: GrowthOperator, generator: torch.Generator | None
) -> torch.Tensor:
    """The new value of one tensor, checked."""
    if not change.grows:
        return change.carry(old)
    ours = any(fill is entry for entry in OPERATORS.values())
    new = fill(Gap(change, old if ours else old.clone(), generator))  # a stranger may write into what it is given
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
    kept, was = change.survivors(new).contiguous(), change.survivors_of_old(old).contiguous()
    if not old.is_meta and not torch.equal(
        kept.view(torch.uint8), was.view(torch.uint8)
    ):  # bit for bit, so that NaN equals itself
        raise MorphError(
            "the growth operator changed what was alive",
            where=change.name,
            expected="the old entries where `gap.map` carries them",
            todo="Begin with gap.map.carry(gap.old), and leave gap.old as it is",
        )
    return new

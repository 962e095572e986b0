"""The morph: plan every edit, refuse what cannot be done, then change the user's module once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import MorphError
from ..network import Network, set_attributes, tensor_named
from ..subnet import SubNetwork
from .growth import OPERATORS, Gap, GrowthOperator, named
from .optimizer import carried_state, check_optimizers
from .tensors import TensorMap, map_tensors
from .trial import try_out


@dataclass(frozen=True)
class Change:
    """What happened to one parameter or buffer: the same object, with a new value.

    Attributes:
        tensor: the parameter or buffer.
        map: its shapes before and after and where each entry came from. `map.carry(t)` takes anything else
            kept per entry (a mask, an own moment) through the same change.
    """

    tensor: torch.Tensor
    map: TensorMap


@dataclass(frozen=True)
class Receipt:
    """What a morph did.

    Attributes:
        before, after: the sub-networks.
        changes: every parameter and buffer that changed, by name.
        seconds: how long it took.
    """

    before: SubNetwork
    after: SubNetwork
    changes: Mapping[str, Change]
    seconds: float

    @property
    def carried(self) -> int:
        """Entries of the changed tensors that were carried over bit for bit."""
        return sum(change.map.carried for change in self.changes.values())

    @property
    def new(self) -> int:
        """Entries that a growth operator filled."""
        return sum(change.tensor.numel() for change in self.changes.values()) - self.carried


def morph(
    network: Network,
    target: SubNetwork,
    *,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    ema: nn.Module | Iterable[nn.Module] | None = None,
    operator: str | GrowthOperator = "orthogonal",
    generator: torch.Generator | None = None,
) -> Receipt:
    """Change the model from its current sub-network to `target`, in place.

    Channels in both are carried over bit for bit, in the parameters, buffers, gradients, optimizer state and
    EMA copies alike; new ones are filled by `operator` (their optimizer state is empty, their EMA is their
    value); channels not in `target` are dropped. Parameters stay the same objects, so whoever holds them (an
    optimizer, a clipping list, a hook) holds the right ones afterwards.

    Args:
        network: what `trace` returned.
        target: a sub-network of it.
        optimizer: the model's optimizer or optimizers; any whose state tensors have their parameter's shape.
        ema: `torch.optim.swa_utils.AveragedModel`, timm's `ModelEmaV3`, or plain copies of the model.
        operator: the growth operator, or its name.
        generator: random numbers for the operator.

    Raises:
        SubNetworkError: `target` is not a part of this network.
        MorphError: the model cannot run at that size, or the optimizer or EMA cannot follow. Nothing has
            been changed then.
    """
    start = time.perf_counter()
    network.check(target)
    fill = named(operator)
    optimizers = _as_list(optimizer, Optimizer, "optimizer")
    averages = [_averaged(module) for module in _as_list(ema, nn.Module, "ema")]
    maps = map_tensors(network.structure, network.current, target)
    model = network.model
    check_optimizers(optimizers, {parameter: name for name, parameter in model.named_parameters()}, maps)
    for tree in (model, *averages):
        _check_shapes(tree, maps)
    try_out(network, target)
    with torch.inference_mode(False), torch.no_grad():
        live = {name: tensor_named(model, name) for name in maps}
        new = {name: _fill(change, live[name].detach(), fill, generator) for name, change in maps.items()}
        edits = [
            edit
            for name, change in maps.items()
            for edit in _plan(change, live[name], new[name], optimizers, [tensor_named(a, name) for a in averages])
        ]
        for edit in edits:  # from here on nothing is computed, so nothing can fail halfway
            edit()
    alive = network.structure.alive_mask(target)
    for tree in (model, *averages):
        set_attributes(tree, network.structure, alive)
    before, network.current = network.current, target
    changes = {name: Change(live[name], change) for name, change in maps.items()}
    return Receipt(before, target, changes, time.perf_counter() - start)


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
    if not torch.equal(kept.view(torch.uint8), was.view(torch.uint8)):  # bit for bit, so that NaN equals itself
        raise MorphError(
            "the growth operator changed what was alive",
            where=change.name,
            expected="the old entries where `gap.map` carries them",
            todo="Begin with gap.map.carry(gap.old), and leave gap.old as it is",
        )
    return new


def _plan(
    change: TensorMap,
    tensor: torch.Tensor,
    new: torch.Tensor,
    optimizers: Iterable[Optimizer],
    averages: Iterable[torch.Tensor],
) -> list[Callable[[], None]]:
    """All edits that bring one tensor, its gradient, its moments and its averages to the new size."""
    grad = None if tensor.grad is None else change.carry(tensor.grad)
    edits: list[Callable[[], None]] = [partial(_assign, tensor, new, grad)]
    for average in averages:
        edits.append(partial(_assign, average, change.carry(average.detach(), new.to(average)), None))
    if isinstance(tensor, nn.Parameter):
        for optimizer in optimizers:
            state = carried_state(optimizer, tensor, change, new)
            if state:
                edits.append(partial(optimizer.state[tensor].update, state))
    return edits


def _as_list(value: Any, kind: type, name: str) -> list[Any]:
    try:
        values = [] if value is None else [value] if isinstance(value, kind) else list(value)
    except TypeError:
        values = [value]
    for each in values:
        if not isinstance(each, kind):
            raise MorphError(
                f"{name} is of the wrong kind", expected=f"a {kind.__name__}, or several", found=repr(each)
            )
    return values


def _averaged(ema: nn.Module) -> nn.Module:
    """The copy of the model inside AveragedModel, ModelEmaV3 and their like."""
    inner = getattr(ema, "module", None)
    return inner if isinstance(inner, nn.Module) else ema


def _check_shapes(tree: nn.Module, maps: Mapping[str, TensorMap]) -> None:
    for name, change in maps.items():
        try:
            shape = tuple(tensor_named(tree, name).shape)
        except AttributeError:
            shape = None
        if shape != change.old_shape:
            raise MorphError(
                "the tensor is not what the network's current sub-network says",
                where=name,
                expected=f"shape {change.old_shape}",
                found="no such tensor" if shape is None else f"shape {shape}",
                todo="Change sizes through morphogen.morph alone, and give it every EMA copy each time",
            )


def _assign(tensor: torch.Tensor, value: torch.Tensor, grad: torch.Tensor | None) -> None:
    """Give a parameter or buffer another value of another shape; it stays the same object."""
    tensor.grad = None
    # Autograd caches a node for each parameter that knows its shape, and `.data =` renews it only when the
    # dtype changes: without this step a `loss` that is still around would break the next backward pass.
    other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
    tensor.data = tensor.data.new_empty(0, dtype=other)
    tensor.data = value
    tensor.grad = grad

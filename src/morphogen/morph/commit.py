"""The morph: plan every edit, refuse what cannot be done, then change the user's module once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from ..errors import MorphError
from ..network import Network
from ..subnet import AttributeLayout, SubNetwork
from .growth import Gap, GrowthOperator, named
from .optimizer import carry_state, check_optimizers
from .tensors import TensorMap, map_tensors


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
    optimizers = _as_list(optimizer, Optimizer)
    averages = [_averaged(module) for module in _as_list(ema, nn.Module)]
    maps = map_tensors(network.structure, network.current, target)
    model = network.model
    check_optimizers(optimizers, {parameter: name for name, parameter in model.named_parameters()}, maps)
    for tree in (model, *averages):
        _check_shapes(tree, maps)
    try_out(network, target)
    live = {name: _tensor(model, name) for name in maps}
    with torch.no_grad():
        new = {}
        for name, change in maps.items():
            old = live[name].detach()
            new[name] = fill(Gap(change, old, generator)) if change.grows else change.carry(old)
        for name, value in new.items():
            _check_filled(maps[name], live[name], value)
        for name, change in maps.items():
            for average in averages:
                old = _tensor(average, name)
                _assign(old, change.carry(old.detach(), new[name].to(old)), None)
            if isinstance(parameter := live[name], nn.Parameter):
                for each in optimizers:
                    carry_state(each, parameter, change, new[name])
            grad = live[name].grad
            _assign(live[name], new[name], None if grad is None else change.carry(grad))
    alive = network.structure.alive_mask(target)
    for tree in (model, *averages):
        _set_attributes(tree, network.structure.attributes, alive)
    before, network.current = network.current, target
    changes = {name: Change(live[name], change) for name, change in maps.items()}
    return Receipt(before, target, changes, time.perf_counter() - start)


def try_out(network: Network, target: SubNetwork) -> None:
    """Run `target` on fake tensors, once for each sub-network.

    Raises:
        MorphError: the model's own code does not work at this size, or gives an output of another shape.
    """
    if target in network.fits:
        return
    fake = fake_subnetwork(network, target)
    try:
        output = network.fake.run(fake, target.resolution)
    except Exception as error:  # whatever the model's own code raises at this size
        text = str(error).strip().splitlines()
        raise MorphError(
            f"the model cannot run at this size ({type(error).__name__}: {text[0] if text else 'no message'})",
            where=_failing_module(fake, error),
            expected="sizes read from the tensors, or kept by PyTorch's own layers",
            todo="Leave the module whole: trace(..., exclude=['its path'])",
        ) from error
    if target.resolution == network.dense.resolution:
        dense = network.fake.run(network.fake.copy(), network.dense.resolution)
        shapes = [[tuple(t.shape) for t in tree_leaves(o) if isinstance(t, torch.Tensor)] for o in (dense, output)]
        if shapes[0] != shapes[1]:
            raise MorphError(
                "the model gives an output of another shape at this size",
                expected=f"{shapes[0]}",
                found=f"{shapes[1]}",
                todo="A view in its code may have sizes written in; exclude it",
            )
    network.fits.add(target)


def fake_subnetwork(network: Network, target: SubNetwork) -> nn.Module:
    """The sub-network on fake tensors, made from the dense model: for shapes, FLOPs and trials."""
    fake = network.fake.copy()
    alive = network.structure.alive_mask(target)
    for name, layout in network.structure.tensors.items():
        if any(axis is not None for axis in layout.axes):
            old = _tensor(fake, name)
            _assign(old, old.new_empty(layout.alive_shape(alive)), None)
    _set_attributes(fake, network.structure.attributes, alive)
    return fake


def _failing_module(model: nn.Module, error: BaseException) -> str:
    """Path of the innermost module in the traceback."""
    paths = {id(module): path for path, module in model.named_modules()}
    where = ""
    frame = error.__traceback__
    while frame is not None:
        where = paths.get(id(frame.tb_frame.f_locals.get("self")), where) or where
        frame = frame.tb_next
    return where or type(model).__name__


def _as_list(value: Any, kind: type) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, kind) else list(value)


def _averaged(ema: nn.Module) -> nn.Module:
    """The copy of the model inside AveragedModel, ModelEmaV3 and their like."""
    inner = getattr(ema, "module", None)
    return inner if isinstance(inner, nn.Module) else ema


def _tensor(model: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


def _check_shapes(tree: nn.Module, maps: Mapping[str, TensorMap]) -> None:
    for name, change in maps.items():
        try:
            shape = tuple(_tensor(tree, name).shape)
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


def _check_filled(change: TensorMap, old: torch.Tensor, new: torch.Tensor) -> None:
    if tuple(new.shape) != change.new_shape or new.dtype != old.dtype or new.device != old.device:
        raise MorphError(
            "the growth operator returned an unfit tensor",
            where=change.name,
            expected=f"{change.new_shape}, {old.dtype}, {old.device}",
            found=f"{tuple(new.shape)}, {new.dtype}, {new.device}",
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


def _set_attributes(model: nn.Module, attributes: Iterable[AttributeLayout], alive: torch.Tensor) -> None:
    for layout in attributes:
        setattr(model.get_submodule(layout.path), layout.name, layout.value(alive))

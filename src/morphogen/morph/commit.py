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

from ..bypass import bypass, replace_module
from ..errors import MorphError
from ..fake import FakeModel, tensor_named
from ..network import Network, set_attributes, set_buffer
from ..subnet import SubNetwork, within
from .blocks import Entering, entering_blocks, fill_block
from .drop_path import lay_out_drop_path
from .entry import DepthOperator, depth_named
from .growth import OPERATORS, Gap, GrowthOperator, named
from .optimizer import carried_state, check_optimizers, enter, leave
from .rezero import add_factor, fold_factors
from .tensors import TensorMap, map_tensors
from .trial import try_out


@dataclass(frozen=True)
class Change:
    """What happened to one parameter or buffer: the same object, with a new value.

    Attributes:
        tensor: the parameter or buffer.
        map: its shapes before and after and where each entry came from. `map.regrid(map.carry(t))` takes
            anything else kept per entry (a mask, an own moment) through the same change.
    """

    tensor: torch.Tensor
    map: TensorMap


@dataclass(frozen=True)
class Receipt:
    """What a morph did.

    Attributes:
        before, after: the sub-networks.
        changes: every parameter and buffer that was there before and changed size, by name.
        entered: every parameter and buffer of the blocks that came in, by name.
        left: the module paths of the blocks that went out.
        seconds: how long it took.
    """

    before: SubNetwork
    after: SubNetwork
    changes: Mapping[str, Change]
    entered: Mapping[str, torch.Tensor]
    left: tuple[str, ...]
    seconds: float

    @property
    def carried(self) -> int:
        """Entries of the changed tensors that were carried over bit for bit."""
        return sum(change.map.carried for change in self.changes.values())

    @property
    def new(self) -> int:
        """Entries that a growth operator filled, or that were interpolated to another grid."""
        changed = sum(change.tensor.numel() for change in self.changes.values())
        return changed - self.carried + sum(tensor.numel() for tensor in self.entered.values())


def morph(
    network: Network,
    target: SubNetwork,
    *,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    ema: nn.Module | Iterable[nn.Module] | None = None,
    operator: str | GrowthOperator = "orthogonal",
    depth_operator: str | DepthOperator = "interpolate",
    momentum: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> Receipt:
    """Change the model from its current sub-network to `target`, in place.

    Channels and blocks in both are carried over bit for bit, in the parameters, buffers, gradients, optimizer
    state and EMA copies alike; new channels are filled by `operator`, new blocks by `depth_operator` (their
    optimizer state is empty, their EMA is their value); what is not in `target` is dropped. Where the
    resolution changes, position embeddings are interpolated. Parameters stay the same objects, so whoever
    holds them (an optimizer, a clipping list, a hook) holds the right ones afterwards.

    Args:
        network: what `trace` returned.
        target: a sub-network of it.
        optimizer: the model's optimizer or optimizers; any whose state tensors have their parameter's shape.
        ema: `torch.optim.swa_utils.AveragedModel`, timm's `ModelEmaV3`, or plain copies of the model.
        operator: how new channels are filled: a growth operator, or its name.
        depth_operator: how new blocks are filled: a depth operator, or its name.
        momentum: the momentum network, an averaged copy of the model that `momentum` and `mogrow` read; it
            begins anew from the grown network.
        generator: random numbers for the operators.

    Raises:
        SubNetworkError: `target` is not a part of this network.
        MorphError: the model cannot run at that size, or the optimizer or EMA cannot follow. Nothing has
            been changed then.
    """
    start = time.perf_counter()
    network.check(target)
    fill, growth = named(operator), depth_named(depth_operator)
    optimizers = _as_list(optimizer, Optimizer, "optimizer")
    averages = [_averaged(module) for module in _as_list(ema, nn.Module, "ema")]
    restarted = None if momentum is None else _averaged(_as_list(momentum, nn.Module, "momentum")[0])
    entering = list(entering_blocks(network, target))
    _check_operator(growth.momentum and restarted is None, growth.silent, entering, depth_operator)
    structure, current, model = network.structure, network.current, network.model
    leaving = tuple(path for path in structure.absent(target) if path not in network.outside)
    maps = map_tensors(network, current, target)
    trees = [model, *averages] if restarted is None else [model, *averages, restarted]
    outside = _tensors_of(network.outside)
    parameters = {p: name for name, p in outside.items() if isinstance(p, nn.Parameter)}
    parameters |= {parameter: name for name, parameter in model.named_parameters()}
    check_optimizers(optimizers, parameters, maps)
    for tree in trees:
        _check_shapes(tree, maps)
    try_out(network, target)
    with torch.inference_mode(False), torch.no_grad():
        fold_factors(trees, optimizers)
        staying = structure.present(current).keys() & structure.present(target).keys()
        live = {name: tensor_named(model, name) for name in structure.tensors if name in staying}
        means = {} if restarted is None else {name: tensor_named(restarted, name) for name in live}
        base = means if growth.everything and restarted is not None else live
        new = {
            name: change.regrid(_fill(change, base[name].detach(), fill, generator)) for name, change in maps.items()
        }
        if base is means:
            new |= {name: tensor.detach().clone() for name, tensor in means.items() if name not in maps}

        def online(name: str) -> torch.Tensor:
            return new[name] if name in new else live[name]

        def averaged(name: str) -> torch.Tensor:
            return _carried(maps[name], means[name], new[name]) if name in maps else means[name]

        fresh: dict[str, torch.Tensor] = {}
        for block in entering:
            fresh |= fill_block(network, target, block, growth, online, averaged, generator)
        buffers = {
            name: value if value is None else value.to(live[name].device) if name in live else value
            for name, value in network.grid_buffers(target.resolution).items()
            if name in staying or value is None
        }
        edits: list[Callable[[], None]] = []
        for name, value in new.items():
            if name not in buffers:
                copies = [tensor_named(tree, name) for tree in trees[1:]]
                edits += _plan(maps.get(name), live[name], value, optimizers, copies)
        copies = {id(tree): _copies(network, entering, fresh, tree) for tree in trees[1:]}
        for edit in edits:  # from here on nothing is computed, so nothing can fail halfway
            edit()
        _exchange(network, entering, leaving, fresh, copies, trees, optimizers)
        for tree in trees:
            for name, value in buffers.items():
                if not within(name, frozenset(structure.absent(target))):
                    set_buffer(tree, name, value)
            set_attributes(tree, network, target)
        before, network.current = network.current, target
        lay_out_drop_path(network)
        if growth.rezero:
            for block in entering:
                _add_factors(block, trees, optimizers)
        if restarted is not None:
            _restart(restarted, model)
    changes = {name: Change(tensor_named(model, name), change) for name, change in maps.items() if name not in buffers}
    entered = {name: tensor_named(model, name) for name in fresh}
    return Receipt(before, target, changes, entered, leaving, time.perf_counter() - start)


def _check_operator(
    lacks_momentum: bool, silent: bool, entering: list[Entering], operator: str | DepthOperator
) -> None:
    """Refuse a depth operator that lacks what it needs."""
    if lacks_momentum and entering:
        raise MorphError(
            f"the depth operator '{operator}' needs a momentum network",
            expected="momentum=, an averaged copy of the model such as torch.optim.swa_utils.AveragedModel",
            found="none",
        )
    for block in entering:
        if silent and block.stack.writers is None:
            raise MorphError(
                f"the depth operator '{operator}' cannot silence the blocks of this stack",
                where=block.stack.name,
                expected="blocks that add to their input (y = x + f(x)) and end in nothing else",
                todo="Use interpolate, or keep the stack whole",
            )


def _tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """All parameters and buffers of several modules by their full names."""
    return {
        f"{path}.{name}": tensor
        for path, module in modules.items()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }


def _copies(
    network: Network, entering: list[Entering], fresh: Mapping[str, torch.Tensor], tree: nn.Module
) -> dict[str, nn.Module]:
    """The blocks that enter, for an averaged copy of the model."""
    copies = {}
    for block in entering:
        module = network.outside[block.path]
        names = {id(t): name for name, t in _tensors_of({block.path: module}).items()}

        def value(tensor: torch.Tensor, names: dict[int, str] = names, block: Entering = block) -> torch.Tensor:
            name = names[id(tensor)]
            if name not in fresh:
                return tensor
            data = fresh[name].to(tensor_named(tree, block.counterpart(name)), copy=True)
            return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data

        copies[block.path] = FakeModel.copy(module, value)
    return copies


def _exchange(
    network: Network,
    entering: list[Entering],
    leaving: tuple[str, ...],
    fresh: Mapping[str, torch.Tensor],
    copies: Mapping[int, Mapping[str, nn.Module]],
    trees: list[nn.Module],
    optimizers: list[Optimizer],
) -> None:
    """Put the blocks that enter in their places, and take those that leave out of theirs."""
    model = network.model
    counterparts: dict[str, nn.Parameter] = {}
    arrived: dict[str, nn.Parameter] = {}
    for block in entering:
        module = network.outside.pop(block.path)
        for name, tensor in _tensors_of({block.path: module}).items():
            if name in fresh:
                _assign(tensor, fresh[name], None)
            if isinstance(tensor, nn.Parameter):
                arrived[name] = tensor
                twin = tensor_named(model, block.counterpart(name))
                assert isinstance(twin, nn.Parameter)
                counterparts[name] = twin
        stand_in = replace_module(model, block.path, module)
        module.train(stand_in.training)
        for tree in trees[1:]:
            replace_module(tree, block.path, copies[id(tree)][block.path].train(tree.training))
    for stack in network.stacks:
        for path in stack.blocks:
            if path in leaving:
                for tree in trees:
                    stand_in = bypass(stack)
                    gone = replace_module(tree, path, stand_in)
                    stand_in.training = gone.training
                    if tree is model:
                        network.outside[path] = gone
    gone = {name: t for name, t in _tensors_of({path: network.outside[path] for path in leaving}).items()}
    for optimizer in optimizers:
        held = network.held.setdefault(optimizer, {})
        leave(optimizer, {name: p for name, p in gone.items() if isinstance(p, nn.Parameter)}, held)
    for tensor in gone.values():
        _assign(tensor, tensor.detach().new_empty(0), None)
    order = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    for optimizer in optimizers:
        enter(optimizer, arrived, counterparts, network.held.setdefault(optimizer, {}), order)


def _add_factors(block: Entering, trees: list[nn.Module], optimizers: list[Optimizer]) -> None:
    """A factor on each residual branch of a new block, trained like the layer's own parameters."""
    writers = block.stack.writers or {}
    layers = {name.rpartition(".")[0] for name in block.tensors if writers.get(name, False)}
    for path in sorted(layers):
        layer = trees[0].get_submodule(path)
        own = list(layer.parameters(recurse=False))
        factor = add_factor(layer)
        for tree in trees[1:]:
            add_factor(tree.get_submodule(path)).requires_grad_(False)
        for optimizer in optimizers:
            groups = [g for g in optimizer.param_groups if any(p is own[-1] for p in g["params"])]
            for group in groups:
                group["params"].append(factor)


def _restart(momentum: nn.Module, model: nn.Module) -> None:
    """The momentum network begins anew as the model is."""
    theirs = dict([*momentum.named_parameters(), *momentum.named_buffers()])
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        theirs[name].copy_(tensor)


def _carried(change: TensorMap, average: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
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
    if not torch.equal(kept.view(torch.uint8), was.view(torch.uint8)):  # bit for bit, so that NaN equals itself
        raise MorphError(
            "the growth operator changed what was alive",
            where=change.name,
            expected="the old entries where `gap.map` carries them",
            todo="Begin with gap.map.carry(gap.old), and leave gap.old as it is",
        )
    return new


def _plan(
    change: TensorMap | None,
    tensor: torch.Tensor,
    new: torch.Tensor,
    optimizers: Iterable[Optimizer],
    averages: Iterable[torch.Tensor],
) -> list[Callable[[], None]]:
    """All edits that bring one tensor, its gradient, its moments and its averages to the new size."""
    if change is None:  # another value of the same size
        return [partial(_copy, tensor, new)]
    # A gradient belongs to entries; interpolated ones are others.
    grad = None if tensor.grad is None or change.regrids else change.carry(tensor.grad)
    edits: list[Callable[[], None]] = [partial(_assign, tensor, new, grad)]
    for average in averages:
        edits.append(partial(_assign, average, _carried(change, average, new), None))
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


def _copy(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Give a parameter or buffer another value of the same shape."""
    tensor.data.copy_(value)


def _assign(tensor: torch.Tensor, value: torch.Tensor, grad: torch.Tensor | None) -> None:
    """Give a parameter or buffer another value of another shape; it stays the same object."""
    tensor.grad = None
    # Autograd caches a node for each parameter that knows its shape, and `.data =` renews it only when the
    # dtype changes: without this step a `loss` that is still around would break the next backward pass.
    other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
    tensor.data = tensor.data.new_empty(0, dtype=other)
    tensor.data = value
    tensor.grad = grad

"""The morph: plan every edit, refuse what cannot be done, then change the user's module once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..dense.assign import assign
from ..dense.caches import forget
from ..dense.fake import drop_caches, has_own_arithmetic, tensor_named
from ..dense.network import Network, set_attributes, set_buffers
from ..dense.subnet import SubNetwork, within
from ..dense.whole import about_to_write, overwrite, whole
from ..errors import MorphError
from .averages import Shadows, averaged, several_averages
from .away import begin_to_keep, keep, let_go
from .blocks import Entering, entering_blocks
from .drop_path import lay_out_drop_path
from .entry import DepthGrowth, DepthOperator, depth_named
from .exchange import add_factors, averaged_blocks, exchange, tensors_of
from .growth import GrowthOperator, WidthGrowth, named
from .optimizer import begin_together, check_optimizers
from .optimizer_state import carried_state
from .rehearsal import check_operator
from .rewriting import rewrite
from .rezero import fold_factors
from .tensors import TensorMap, map_tensors
from .trial import try_out
from .values import blocks_above, carried_average, compute_values, fill_of


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
    changes: Mapping[str, Change] = field(repr=False)
    entered: Mapping[str, torch.Tensor] = field(repr=False)
    left: tuple[str, ...]
    seconds: float

    @property
    def carried(self) -> int:
        """Entries of the changed tensors that were carried over: bit for bit, or divided where the operator divides."""
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
    ema: Any = None,
    operator: str | GrowthOperator = "quiet",
    depth_operator: str | DepthOperator = "interpolate",
    momentum: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> Receipt:
    """Change the model from its current sub-network to `target`, in place.

    Channels and blocks in both are carried over bit for bit, in the parameters, buffers, gradients, optimizer
    state and EMA copies alike; new channels are filled by `operator`, new blocks by `depth_operator` (their
    optimizer state is empty, their EMA is their value); what is frozen comes back with the values it had when the model
    was traced; what is not in `target` is dropped, or kept on the CPU once an operator is `restore`. An operator that
    copies channels and preserves the function (`net2net`) also divides the weights that read them, in the EMA copies
    too; gradients and optimizer state are carried as they are. Where the resolution changes, position embeddings are
    interpolated. Parameters stay the same objects, so whoever holds them (an optimizer, a clipping list, a hook)
    holds the right ones afterwards.

    Args:
        network: what `trace` returned.
        target: a sub-network of it.
        optimizer: the model's optimizer or optimizers; any whose state tensors have their parameter's shape.
        ema: `torch.optim.swa_utils.AveragedModel`, timm's `ModelEma` (all versions), plain copies of the model, or
            other objects that hold one, or a list of averaged parameters (torch_ema, diffusers' `EMAModel`).
        operator: how new channels are filled: a growth operator, or its name.
        depth_operator: how new blocks are filled: a depth operator, or its name.
        momentum: the momentum network, an averaged copy of the model that `momentum` and `mogrow` read; it
            begins anew from the grown network.
        generator: random numbers for the operators.

    Raises:
        SubNetworkError: `target` is not a part of this network.
        MorphError: the model cannot run at that size, or the optimizer or EMA cannot follow. Nothing has
            been changed then, nor after whatever else is raised; a signal such as Ctrl-C waits until all is done.
    """
    start = time.perf_counter()
    network.check(target)
    fill, growth = named(operator), depth_named(depth_operator)
    optimizers = several(optimizer, Optimizer, "optimizer")
    given = several_averages(ema, network.model)
    averages = [averaged(module, network.model) for module in given]
    shadows = [each for each in given if isinstance(each, Shadows)]
    for each in shadows:
        each.pull()
    restarted = None if momentum is None else averaged(several(momentum, nn.Module, "momentum")[0], network.model)
    entering = list(entering_blocks(network, network.current, target))
    check_operator(growth.momentum and restarted is None, growth.silent, entering, depth_operator)
    trees = [network.model, *averages] if restarted is None else [network.model, *averages, restarted]
    change = partial(_change, network, target, entering, optimizers, trees, restarted, fill, growth, generator)
    receipt = whole(partial(_with, change, shadows), network, *optimizers, *trees, *shadows, generator)
    return replace(receipt, seconds=time.perf_counter() - start)


def _with(change: Callable[[], Receipt], shadows: Iterable[Shadows]) -> Receipt:
    receipt = change()
    for each in shadows:
        each.push()
    return receipt


@torch.inference_mode(False)
@torch.no_grad()
def _change(
    network: Network,
    target: SubNetwork,
    entering: list[Entering],
    optimizers: list[Optimizer],
    trees: list[nn.Module],
    restarted: nn.Module | None,
    fill: WidthGrowth,
    growth: DepthGrowth,
    generator: torch.Generator | None,
) -> Receipt:
    """Plan every edit, then make them; see `morph`."""
    structure, current, model = network.structure, network.current, network.model
    leaving = tuple(path for path in structure.absent(target) if path not in network.outside)
    maps, above = map_tensors(network, current, target), blocks_above(network, target)
    outside = tensors_of(network.outside)
    parameters = {p: name for name, p in outside.items() if isinstance(p, nn.Parameter)}
    parameters |= {parameter: name for name, parameter in model.named_parameters()}
    moved = (name for block in entering for name in block.tensors)
    gone = (name for name in structure.tensors if within(name, frozenset(leaving)))
    check_optimizers(optimizers, parameters, {*maps, *moved, *gone}, network.begins)
    for tree in trees:
        _check_tree(tree, network, maps)
    try_out(network, target)
    fold_factors(trees, optimizers)
    if fill.restores or growth.restores:
        begin_to_keep(network)
    keep(network, target)
    values = compute_values(network, target, maps, entering, fill, growth, restarted, above, generator)
    edits = [
        edit
        for name, value in values.staying.items()
        for tensor in [tensor_named(model, name)]
        for edit in _plan(
            network,
            maps.get(name),
            tensor,
            value,
            optimizers,
            trees[1:],
            fill_of(network, name, tensor, fill),
            above,
        )
    ]
    copies = [averaged_blocks(network, entering, values.entering, tree) for tree in trees[1:]]
    for edit in edits:  # from here on nothing is computed, so nothing should fail halfway
        edit()
    exchange(network, entering, leaving, values.entering, trees, copies, optimizers)
    if entering:
        begin_together(optimizers)
    network.current = target
    let_go(network)
    for tree in trees:
        set_buffers(tree, network, target, values.buffers)
        set_attributes(tree, network, target)
        rewrite(tree)
        drop_caches(tree)
        forget(tree, structure.caches)
    if current.blocks != target.blocks:  # rates of the loop's own stay where they are
        lay_out_drop_path(network)
    if growth.rezero:
        for block in entering:
            add_factors(block, trees, optimizers)
    if restarted is not None:
        _restart(restarted, model)
    changes = {name: Change(tensor_named(model, name), change) for name, change in maps.items()}
    entered = {name: tensor_named(model, name) for name in values.entering}
    return Receipt(current, target, changes, entered, leaving, 0.0)


def _restart(momentum: nn.Module, model: nn.Module) -> None:
    """The momentum network begins anew as the model is."""
    theirs = dict([*momentum.named_parameters(), *momentum.named_buffers()])
    about_to_write(theirs.values())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        theirs[name].copy_(tensor)


def _plan(
    network: Network,
    change: TensorMap | None,
    tensor: torch.Tensor,
    new: torch.Tensor,
    optimizers: Iterable[Optimizer],
    averages: Iterable[nn.Module],
    fill: WidthGrowth,
    above: Mapping[str, str],
) -> list[Callable[[], None]]:
    """All edits that bring one tensor, its gradient, its moments and its averages to the new size."""
    if change is None:  # another value of the same size
        return [partial(overwrite, tensor, new)]
    # A gradient belongs to entries; interpolated ones are others.
    grad = None if tensor.grad is None or change.regrids else change.carry(tensor.grad)
    edits: list[Callable[[], None]] = [partial(assign, tensor, new, grad)]
    for tree in averages:
        value = carried_average(network, change, tree, new, fill, above)
        edits.append(partial(assign, tensor_named(tree, change.name), value, None))
    if isinstance(tensor, nn.Parameter):
        for optimizer in optimizers:
            begins = network.begins.get(optimizer, {})
            state = carried_state(optimizer, begins, tensor, change, new, rescaled=fill.rescales)
            if state:
                edits.append(partial(optimizer.state[tensor].update, state))
    return edits


def several(value: Any, kind: type, name: str) -> list[Any]:
    """None, one, or several of a kind as a list; raises MorphError for anything else."""
    try:
        values = [] if value is None else [value] if isinstance(value, kind) else list(value)
    except TypeError:
        values = [value]
    for each in values:
        if not isinstance(each, kind):
            raise MorphError(
                f"{name} is of the wrong kind", expected=f"one {kind.__name__}, or several", found=repr(each)
            )
    return values


def _check_tree(tree: nn.Module, network: Network, maps: Mapping[str, TensorMap]) -> None:
    """Refuse a model, or an averaged copy, that is not at the network's current sub-network."""
    model, tensors = network.model, dict([*tree.named_parameters(), *tree.named_buffers()])
    other = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]} ^ tensors.keys()
    if other:
        raise MorphError(
            "the averaged copy has other tensors than the model",
            where=min(other),
            expected="a copy of the model at its current sub-network",
            found=f"{len(other)} names that only one of them has",
            todo="Give every copy to morphogen.morph each time, from the first morph on",
        )
    for name, tensor in tensors.items():
        if has_own_arithmetic(tensor):
            raise MorphError(
                "the tensor is of a class that computes in its own way",
                where=name,
                expected="an ordinary tensor, as it was traced",
                found=type(tensor).__name__,
                todo="Quantise or shard the model (fully_shard) when it changes its size no more; on several ranks "
                "use DistributedDataParallel",
            )
    for name, change in maps.items():
        try:
            now = tensor_named(tree, name)
        except AttributeError:
            now = None
        if now is None or tuple(now.shape) != change.old_shape:
            raise MorphError(
                "the tensor is not what the network's current sub-network says",
                where=name,
                expected=f"shape {change.old_shape}",
                found="no such tensor" if now is None else f"shape {tuple(now.shape)}",
                todo="Change sizes through morphogen.morph alone, and give it every EMA copy each time"
                + (
                    ""
                    if isinstance(now, nn.Parameter)
                    else ". A table that is kept for one length of input is followed "
                    "where the model is traced before its first call"
                ),
            )
        if isinstance(tensor_named(network.fake.dense, name), nn.Parameter) and not isinstance(now, nn.Parameter):
            raise MorphError(
                "the parameter that was traced is one no more, but computed of others",
                where=name,
                expected="the modules as they were traced",
                found="a parametrization or a hook that came later (torch.nn.utils.parametrize, prune)",
                todo="Put it on before trace or attach, or after the last morph",
            )

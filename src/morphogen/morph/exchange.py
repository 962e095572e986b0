"""Blocks enter and leave: the user's module, its averaged copies, and the optimizers' groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from ..dense.assign import assign
from ..dense.bypass import Bypass, replace_module
from ..dense.double import double, named_tensors
from ..dense.fake import tensor_named
from ..dense.network import Network
from .blocks import Entering
from .optimizer import append, enter, leave
from .rezero import FACTOR, add_factor


def tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """All parameters, buffers and plain attributes that are tensors of several modules, by their full names."""
    return {
        f"{path}.{name}": tensor for path, module in modules.items() for name, tensor in named_tensors(module).items()
    }


def averaged_blocks(
    network: Network, entering: list[Entering], fresh: Mapping[str, torch.Tensor], tree: nn.Module
) -> dict[str, nn.Module]:
    """The blocks that enter, for an averaged copy of the model."""
    copies = {}
    device = next(tree.parameters()).device
    for block in entering:
        module = network.outside[block.path]
        names = {id(t): name for name, t in tensors_of({block.path: module}).items()}

        def value(tensor: torch.Tensor, names: dict[int, str] = names, block: Entering = block) -> torch.Tensor:
            name = names.get(id(tensor))
            if name is None or name not in fresh:
                return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
            twin = tensor_named(tree, block.counterparts(name)[0])  # may be missing: a mask that is not needed
            dtype = twin.dtype if isinstance(twin, torch.Tensor) and twin.is_floating_point() else None
            data = fresh[name].to(device=device, dtype=dtype, copy=True)
            return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data

        copies[block.path] = double(module, value, hooks=True)
    return copies


def exchange(
    network: Network,
    entering: Sequence[Entering],
    leaving: Sequence[str],
    values: Mapping[str, torch.Tensor],
    trees: Sequence[nn.Module],
    copies: Sequence[Mapping[str, nn.Module]],
    optimizers: Sequence[Optimizer],
) -> None:
    """Put the blocks that enter in their places, and take those that leave out of theirs.

    Args:
        network: its `outside` and `held` are kept up.
        entering, leaving: the blocks, and the paths of blocks.
        values: the entering blocks' tensors, by name.
        trees: the model, then its averaged copies.
        copies: for each averaged copy its entering blocks, by path.
        optimizers: of the model.
    """
    model = network.model
    arrived: dict[str, nn.Parameter] = {}
    counterparts: dict[str, list[nn.Parameter]] = {}
    old = dict(model.named_parameters())
    for block in entering:
        module = network.outside.pop(block.path)
        for name, tensor in tensors_of({block.path: module}).items():
            if name in values:
                assign(tensor, values[name], None)
            if isinstance(tensor, nn.Parameter):
                arrived[name] = tensor
                counterparts[name] = [old[twin] for twin in block.counterparts(name)]
        stand_in = replace_module(model, block.path, module)
        if stand_in.training != module.training:
            module.train(stand_in.training)
        for tree, blocks in zip(trees[1:], copies, strict=True):
            replace_module(tree, block.path, blocks[block.path].train(tree.training))
    gone: dict[str, nn.Module] = {}
    for stack in network.stacks:
        for path, hands_on in stack.places:
            if path in leaving:
                for tree in trees:
                    stand_in = Bypass(hands_on)
                    module = replace_module(tree, path, stand_in)
                    stand_in.training = module.training
                    if tree is model:
                        gone[path] = module
    network.outside |= gone
    tensors = tensors_of(gone)
    order = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    notes = [network.held.setdefault(optimizer, []) for optimizer in optimizers]
    for optimizer, held in zip(optimizers, notes, strict=True):
        leave(optimizer, [tensor for tensor in tensors.values() if isinstance(tensor, nn.Parameter)], held)
    enter(optimizers, arrived, counterparts, notes, order)
    for name, tensor in tensors.items():
        if name in network.structure.tensors:
            assign(tensor, tensor.detach().new_empty(0), None)


def add_factors(block: Entering, trees: Sequence[nn.Module], optimizers: Iterable[Optimizer]) -> None:
    """A factor on each residual branch of a new block, trained as the layer's own weight is."""
    writers = block.stack.writers or {}
    layers = {name.rpartition(".")[0] for name in block.tensors if writers.get(name, False)}
    model = trees[0]
    layers = {path for path in layers if tensor_named(model, f"{path}.weight").requires_grad}  # else it would stay 0
    put_factors(sorted(layers), trees, optimizers)


def put_factors(layers: Iterable[str], trees: Sequence[nn.Module], optimizers: Iterable[Optimizer]) -> None:
    """A factor on each of these layers of the model and of its averaged copies, the first and the rest of the trees."""
    for path in layers:
        layer = trees[0].get_submodule(path)
        own = {id(parameter) for parameter in layer.parameters(recurse=False)}
        factor = add_factor(layer)
        for tree in trees[1:]:
            add_factor(tree.get_submodule(path)).requires_grad_(False)
        groups = [group for o in optimizers for group in o.param_groups if own & {id(p) for p in group["params"]}]
        for group in groups[:1]:
            append(group, f"{path}.{FACTOR}", factor)

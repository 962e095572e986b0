"""Doubles of a model: deep copies with other tensors, on which anything can be tried."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..machine.hook import Hook
from ..machine.private import backward_hook_tables, forward_hook_tables, forward_pre_hooks, unwrapped
from .rewritten import rewriters, rewritten

Replace = Callable[[torch.Tensor], torch.Tensor]


def double(model: nn.Module, replace: Replace, *, hooks: bool = False) -> nn.Module:
    """A deep copy of a model in which every tensor is what `replace` makes of it.

    That holds for parameters and buffers, which are never copied, and for whatever else the model keeps, at any depth
    of any container: also for what an earlier forward pass has left behind, which `copy.deepcopy` refuses.

    Args:
        model: it is only read.
        replace: what takes the place of a tensor.
        hooks: whether to keep the hooks around the forward pass. Where these hold modules of the model, lists or
            dictionaries, those of the double hold copies, so that they leave the model's own alone. Those that write
            weights (`weight_norm`) stay in any case.
    """
    memo: dict[int, Any] = {id(t): replace(t) for t in [*model.parameters(), *model.buffers()]}
    kept: list[tuple[Any, Any]] = []
    for module in model.modules():
        for table in (*forward_hook_tables(module), *backward_hook_tables(module)):
            memo[id(table)] = type(table)()
        kept += [(table, memo[id(table)]) for table in forward_hook_tables(module) if hooks]
    with _Replacing(replace):
        copied = copy.deepcopy(model, memo)
    for table, own in kept:
        own.update({key: _own(hook, memo) for key, hook in table.items() if not isinstance(unwrapped(hook), Hook)})
    for module in model.modules():
        memo[id(forward_pre_hooks(module))].update(rewriters(module))
    return copied


def has_hooks(model: nn.Module) -> bool:
    """Whether somebody else than Morphogen has put hooks around a model's forward pass."""
    tables = (table for module in model.modules() for table in forward_hook_tables(module))
    return any(not isinstance(unwrapped(hook), Hook) for table in tables for hook in table.values())


def plain_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that modules keep as plain attributes, by name, without parameters and buffers.

    A module's state has none of them. What a hook computes anew is none.
    """
    known = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        computed = rewritten(module)
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and id(value) not in known and name not in computed:
                known.add(id(value))
                found[f"{path}.{name}".lstrip(".")] = value
    return found


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters, buffers and plain attributes that are tensors, each once, by name."""
    return dict([*model.named_parameters(), *model.named_buffers()]) | plain_tensors(model)


class _Replacing(TorchFunctionMode):
    """While it is active, `deepcopy` takes other tensors."""

    def __init__(self, replace: Replace):
        super().__init__()
        self._replace = replace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = self._replace(tensor)
        return memo[id(tensor)]


def _own(value: Any, memo: dict[int, Any]) -> Any:
    """What a hook of a double has in the place of what the model's own has."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _own(value.__self__, memo))
    if type(value) is partial:
        keywords = {key: _own(each, memo) for key, each in value.keywords.items()}
        return partial(_own(value.func, memo), *(_own(each, memo) for each in value.args), **keywords)
    if isinstance(value, FunctionType):
        return _own_function(value, memo)
    return copy.copy(value) if type(value) in (list, dict, set) else value


def _own_function(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    cells = tuple(CellType() for _ in function.__closure__ or ())
    own = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
    memo[id(function)] = own  # before what it holds, which may be itself
    for cell, held in zip(cells, function.__closure__ or (), strict=True):
        try:
            cell.cell_contents = _own(held.cell_contents, memo)
        except ValueError:  # not filled yet
            continue
    defaults, keywords = function.__defaults__, function.__kwdefaults__
    own.__defaults__ = defaults and tuple(_own(value, memo) for value in defaults)
    own.__kwdefaults__ = keywords and {key: _own(value, memo) for key, value in keywords.items()}
    return own

"""What a forward pass leaves in the modules to use again (rotary tables, ALiBi slopes), and forgets when sizes change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..machine.private import tree_leaves

OWN = frozenset(vars(nn.Module()))
"""What every module keeps for PyTorch."""


@dataclass(frozen=True)
class Cached:
    """An attribute that the first forward pass writes: the path of its module, its name, and what it was before."""

    path: str
    name: str
    there: bool
    before: Any


def find_caches(fresh: nn.Module, ran: nn.Module) -> tuple[Cached, ...]:
    """What a forward pass has written into modules that keep a tensor since then, such as the length it is made for.

    A tensor that was there before is no cache: it is followed as a buffer is.

    Args:
        fresh: a model that has not been called.
        ran: its double, which has.
    """
    found: list[Cached] = []
    for path, module in ran.named_modules():
        before, after = _kept(fresh.get_submodule(path)), _kept(module)
        written = [name for name in after if name not in before or _is_written(before[name], after[name])]
        if any(_holds_tensors(after[name]) for name in written):
            found += [Cached(path, name, name in before, before.get(name)) for name in written]
    return tuple(found)


def forget(model: nn.Module, caches: Iterable[Cached]) -> None:
    """Bring a model to where its next forward pass computes its caches anew, at its size then."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for each in caches:
        module = modules.get(each.path)
        if module is None or each.name not in _kept(module):  # a block that is out
            continue
        if each.there:
            setattr(module, each.name, {} if each.before == {} else each.before)
        else:
            delattr(module, each.name)


def _kept(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in OWN} | module._buffers


def _is_written(before: Any, after: Any) -> bool:
    """Of something plain, or an empty dictionary, whether it is something else now."""
    if isinstance(before, dict):
        return not before and before != after
    plain = before is None or (isinstance(before, (bool, int, float, str, tuple)) and not _holds_tensors(before))
    return plain and (_holds_tensors(after) or type(before) is not type(after) or before != after)


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))

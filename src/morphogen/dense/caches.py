"""What a forward pass leaves in the modules to use again (rotary tables, ALiBi slopes): forgotten when sizes change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..machine.private import tree_leaves
from .double import plain_tensors

OWN = frozenset(vars(nn.Module()))
"""What every module keeps for PyTorch."""


@dataclass(frozen=True, eq=False)
class Cached:
    """An attribute that the first forward pass writes: the path of its module, its name, and what it was before."""

    path: str
    name: str
    there: bool
    before: Any


def find_caches(fresh: nn.Module, ran: nn.Module, again: Callable[[], Any]) -> tuple[Cached, ...]:
    """What a forward pass has written into modules that keep a tensor since then, such as the length it is made for.

    A tensor that was there before is no cache: it is followed as a buffer is. Nor is a number that is another one after
    each call: the module counts.

    Args:
        fresh: a model that has not been called.
        ran: its double, which has.
        again: calls that once more.
    """
    found: dict[Cached, Any] = {}
    for path, module in ran.named_modules():
        before, after = _kept(fresh.get_submodule(path)), _kept(module)
        written = [name for name in after if name not in before or _is_written(before[name], after[name])]
        if any(_holds_tensors(after[name]) for name in written):
            found |= {Cached(path, name, name in before, before.get(name)): after[name] for name in written}
    if found:
        again()
    return tuple(
        each for each, value in found.items() if not _counts(value, _kept(ran.get_submodule(each.path)).get(each.name))
    )


def tables(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor that a forward pass may put another in the place of, by name."""
    return dict(model.named_buffers()) | plain_tensors(model)


def find_stale(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    again: Callable[[], Mapping[str, torch.Tensor]],
) -> tuple[str, ...]:
    """The tables that an earlier call had left for other inputs than the example: a forward pass makes them anew.

    What every forward pass makes anew (the last attention, to look at) is none.

    Args:
        before, after: the tables of a model that is called once between.
        again: calls it once more, and returns them.
    """
    written = [name for name, table in before.items() if name in after and after[name] is not table]
    twice = again() if written else {}
    return tuple(name for name in written if twice.get(name) is after[name])


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


def _counts(before: Any, after: Any) -> bool:
    """Whether a number is another one after a further call."""
    return isinstance(before, (int, float)) and isinstance(after, (int, float)) and before != after


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))

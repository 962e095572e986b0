"""Positions that a mask picks: where tensors have no values, as many as it has.

A mixture of experts gives each the tokens that chose it, `x[torch.where(chosen == expert)[0]]`, and how many those are
is in the values. Nothing that changes size depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode

from ..machine.private import for_real, is_fake


class AllPicked(TorchFunctionMode):
    """While it is active, a mask without values picks every position, so that `if mask.any():` goes on.

    Attributes:
        branched: whether the code has asked so; what it does otherwise is not seen then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.branched = False
        self._true: list[torch.Tensor] = []

    def __enter__(self) -> Self:
        """Another forward pass begins."""
        self._true.clear()
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call; those that pick by a mask in another way."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        first: Any = args[0] if args else kwargs.get("input", kwargs.get("condition"))
        if name == "where" and len(args) + len(kwargs) == 1 and _is_mask(first):
            return _places(first)
        if name in ("nonzero", "argwhere") and _is_mask(first):
            places = _places(first)
            return places if kwargs.get("as_tuple") else torch.stack(places, dim=-1)
        if name == "masked_select" and "out" not in kwargs:
            x, mask = torch.broadcast_tensors(first, args[1] if len(args) > 1 else kwargs["mask"])
            return x[_places(mask)]
        if name == "__getitem__":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(map(_is_index, index)):
                return first[tuple(_by_position(index))]
        if name == "__bool__" and any(first is each for each in self._true):
            self.branched = True
            return True
        result = func(*args, **kwargs)
        if name == "any" and is_fake(result) and not result.ndim:
            self._true.append(result)
        return result


def _is_mask(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0


def _is_index(value: Any) -> bool:
    return _is_mask(value) and value.dtype == torch.bool


def _by_position(index: tuple[Any, ...]) -> Iterator[Any]:
    """An index with positions in place of masks."""
    for each in index:
        yield from _places(each) if _is_index(each) else (each,)


def _places(mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The positions that a mask picks, one tensor an axis; of one without values, as many as it has."""
    if is_fake(mask):
        return (mask.flatten().long(),) * mask.ndim
    with for_real():
        return torch.where(mask)

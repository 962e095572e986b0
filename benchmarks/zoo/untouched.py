"""Everything that can be reached from a model, so that whatever touched it is told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch

Picture = dict[str, Any]
LEAVES = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device, torch.Size)


def picture(model: torch.nn.Module) -> Picture:
    """What each path from the model leads to: bits of tensors, values of numbers, which object and what is in it."""
    found: Picture = {}
    known: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", model)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, LEAVES):
            found[path] = value if value == value else "nan"
            continue
        found[path] = id(value), type(value).__name__, _bits(value) if isinstance(value, torch.Tensor) else None
        if id(value) in known or isinstance(value, (ModuleType, FunctionType)):
            continue
        known.add(id(value))
        waiting += [(path + key, inner) for key, inner in _inside(value)]
    return found


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key}]", inner) for key, inner in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{place}]", inner) for place, inner in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield "{}", str(sorted(map(str, value)))
    if isinstance(value, torch.Tensor):
        yield ".requires_grad", value.requires_grad
        yield ".grad", value.grad if value.is_leaf else None
    if isinstance(value, MethodType):
        yield ".__self__", value.__self__
    for key, inner in (getattr(value, "__dict__", None) or {}).items():
        yield f".{key}", inner


def _bits(tensor: torch.Tensor) -> str:
    """A digest of shape, strides, dtype and content."""
    about = f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.device}"
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{about} {hashlib.blake2b(content, digest_size=8).hexdigest()}"


def difference(before: Picture, after: Picture) -> str:
    """The first path that leads elsewhere; nothing if none does."""
    return next((path for path in [*before, *after] if before.get(path, "none") != after.get(path, "none")), "")

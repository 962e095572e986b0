"""Averaged copies of a model: found by the objects that update them, and what of a model they average."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .private import NormBase

UPDATES = ("update_parameters", "update")
"""How PyTorch's AveragedModel, timm's ModelEma, V2 and V3, and their like are told to follow the model."""

SETTINGS = ("decay", "n_averaged", "avg_fn", "multi_avg_fn", "beta")
"""What they keep of how fast they follow; an object that updates the best model so far has none of these."""


def averaged_among(copies: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of several copies of a model that belong to an object which updates them; a copy that somebody keeps as it
    was (the best so far) belongs to none."""
    known = {id(copy): copy for copy in copies}
    if not known:
        return []
    found: dict[int, nn.Module] = {}
    for each in gc.get_objects():
        kind = type(each)
        if kind.__module__ == "builtins" or not any(callable(getattr(kind, name, None)) for name in UPDATES):
            continue
        held = _held(each)
        if any(name in held for name in SETTINGS):
            found |= {id(copy): copy for value in held.values() for copy in _modules(value) if id(copy) in known}
    return list(found.values())


def inside(wrapper: Any) -> nn.Module | None:
    """What an average, a DistributedDataParallel or a compiled model holds; None for what holds none."""
    return next(
        (own for name in ("module", "_orig_mod") if isinstance(own := _held(wrapper).get(name), nn.Module)), None
    )


def _modules(value: Any) -> Iterator[nn.Module]:
    return value.modules() if isinstance(value, nn.Module) else iter(())


def _held(owner: Any) -> dict[str, Any]:
    """An object's attributes, buffers and modules by name."""
    values = getattr(owner, "__dict__", None)
    if not isinstance(values, dict):
        return {}
    inside = [own for name in ("_modules", "_buffers") if isinstance(own := values.get(name), dict)]
    return {name: value for each in (values, *inside) for name, value in each.items()}


def averaged_and_copied(tree: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What an average of a model averages, its parameters and running statistics, and the buffers that it copies."""
    averaged: list[torch.Tensor] = [parameter.detach() for parameter in tree.parameters()]
    copied: list[torch.Tensor] = []
    for module in tree.modules():
        for buffer in module.buffers(recurse=False):
            learned = isinstance(module, NormBase) and buffer.is_floating_point()
            (averaged if learned else copied).append(buffer)
    return averaged, copied


@torch.no_grad()
def put(tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Give tensors these values, in one fused operation."""
    if tensors:
        torch._foreach_copy_(list(tensors), list(values))

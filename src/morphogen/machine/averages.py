"""Averaged copies of a model, found by the objects that update them."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

from torch import nn

UPDATES = ("update_parameters", "update")
"""How PyTorch's AveragedModel, timm's ModelEma, V2 and V3, and their like are told to follow the model."""


def averaged_among(copies: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of several copies of a model that belong to an object which updates them; a copy that somebody keeps as it
    was (the best so far) belongs to none."""
    known = {id(copy): copy for copy in copies}
    if not known:
        return []
    found: dict[int, nn.Module] = {}
    for each in gc.get_objects():
        kind = type(each)
        if kind.__module__ != "builtins" and any(callable(getattr(kind, name, None)) for name in UPDATES):
            found |= {key: known[key] for key in map(id, _held(each)) if key in known}
    return list(found.values())


def _held(owner: Any) -> list[Any]:
    values = getattr(owner, "__dict__", None)
    if not isinstance(values, dict):
        return []
    modules = values.get("_modules")
    return [*values.values(), *(modules.values() if isinstance(modules, dict) else ())]

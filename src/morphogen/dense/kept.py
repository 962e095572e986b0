"""Sizes that modules keep, as attributes of their own or of a configuration object that they hold (`config.n_embd`)."""

from __future__ import annotations

import copy
import types
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn


def is_configuration(value: Any) -> bool:
    """Whether an object holds values by name and does nothing else: a dataclass, a namespace, a dictionary with
    numbers in it."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str for key in value) and any(type(each) is int for each in value.values())
    if isinstance(value, types.SimpleNamespace):
        return True
    if isinstance(value, (nn.Module, torch.Tensor, type, types.ModuleType, dict, list, tuple, set)) or callable(value):
        return False
    frozen = is_dataclass(value) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    plain = kind.__getattribute__ is object.__getattribute__ and not hasattr(kind, "__getattr__")
    plain &= kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    plain &= frozen or kind.__setattr__ is object.__setattr__
    return plain and hasattr(value, "__dict__") and not hasattr(kind, "__copy__")


def values_in(configuration: Any) -> dict[str, Any]:
    """What it holds, by name."""
    return configuration if type(configuration) is dict else vars(configuration)


def kept(module: nn.Module, name: str) -> Any:
    """An attribute of a module, or (`config.n_embd`) of an object that it holds."""
    head, _, inner = name.partition(".")
    value = getattr(module, head)
    return values_in(value)[inner] if inner else value


def keep(module: nn.Module, name: str, value: Any) -> None:
    """Set it. An object that the module holds may be the user's and other modules' too: the module gets a copy."""
    head, _, inner = name.partition(".")
    if inner:
        own = copy.copy(getattr(module, head))
        values_in(own)[inner] = value
        value = own
    setattr(module, head, value)

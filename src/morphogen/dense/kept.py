"""Sizes that modules keep, as attributes of their own, or of what they hold: a configuration object (`config.n_embd`),
a function that was made where they were known (`lambda x: pad(x, planes // 4)`)."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, MutableMapping
from enum import Enum
from functools import cached_property, partial
from numbers import Integral
from typing import Any, TypeGuard

import torch
from torch import nn

USUAL = "__new__ __reduce__ __reduce_ex__ __getstate__ __setstate__ __copy__ __getattribute__ __getattr__".split()
"""What decides how an object is copied, and what its attributes are."""


class Cells(MutableMapping[str, Any]):
    """What a function has taken from where it was made, by name; None where nothing has been put yet."""

    def __init__(self, function: types.FunctionType):
        self._cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))

    def __getitem__(self, name: str) -> Any:
        try:
            return self._cells[name].cell_contents
        except ValueError:
            return None

    def __setitem__(self, name: str, value: Any) -> None:
        self._cells[name].cell_contents = value

    def __delitem__(self, name: str) -> None:
        raise TypeError("a function keeps what it was made with")

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


def is_configuration(value: Any) -> bool:
    """Whether it keeps numbers by name and can be copied: a dataclass, a namespace, a dictionary, a function, a
    `functools.partial`."""
    kind = type(value)
    if kind in (types.FunctionType, partial):
        return any(map(_is_number, values_in(value).values()))
    if kind is dict:
        return all(type(key) is str for key in value) and any(map(_is_number, value.values()))
    if isinstance(value, (nn.Module, torch.Tensor, type, types.ModuleType, dict, list, tuple, set)) or callable(value):
        return False
    if not hasattr(value, "__dict__") or not any(map(_is_number, vars(value).values())):
        return False
    frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
    writes = frozen or kind.__setattr__ is object.__setattr__
    usual = all(getattr(kind, name, None) is getattr(object, name, None) for name in USUAL)
    return kind is types.SimpleNamespace or (usual and writes)


def _is_number(value: Any) -> bool:
    several = value if isinstance(value, (tuple, list)) and value else (value,)
    return all(map(is_whole, several))


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number, of Python or NumPy."""
    return isinstance(value, Integral) and not isinstance(value, (bool, Enum))


def values_in(configuration: Any) -> MutableMapping[str, Any]:
    """What it holds, by name."""
    if isinstance(configuration, types.FunctionType):
        return Cells(configuration)
    if isinstance(configuration, partial):
        return configuration.keywords
    return configuration if type(configuration) is dict else vars(configuration)


def given_in(configuration: Any) -> dict[str, Any]:
    """What it holds, without what it has computed of that and kept (`functools.cached_property`)."""
    kind = type(configuration)
    return {
        k: v for k, v in values_in(configuration).items() if not isinstance(getattr(kind, k, None), cached_property)
    }


def copied(configuration: Any) -> Any:
    """A copy with what is given alone."""
    if isinstance(configuration, types.FunctionType):
        return _function(configuration)
    if isinstance(configuration, partial):
        return partial(configuration.func, *configuration.args, **configuration.keywords)
    own, given = copy.copy(configuration), given_in(configuration)
    values_in(own).clear()
    values_in(own).update(given)
    return own


def _function(function: types.FunctionType) -> types.FunctionType:
    """The same function with numbers of its own."""
    held = zip(Cells(function).values(), function.__closure__ or (), strict=True)
    cells = tuple(types.CellType(value) if _is_number(value) else cell for value, cell in held)
    own = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    own.__kwdefaults__, own.__dict__ = function.__kwdefaults__, dict(vars(function))
    own.__qualname__, own.__module__, own.__doc__ = function.__qualname__, function.__module__, function.__doc__
    return own


def kept(module: nn.Module, name: str) -> Any:
    """An attribute of a module, or (`config.n_embd`) of an object that it holds; NumPy's numbers as Python's."""
    head, _, inner = name.partition(".")
    value = getattr(module, head)
    value = values_in(value)[inner] if inner else value
    if type(value) in (tuple, list):
        return type(value)(int(each) if is_whole(each) else each for each in value)
    return int(value) if is_whole(value) else value


def keep(module: nn.Module, name: str, value: Any) -> None:
    """Set it. An object that the module holds may be the user's and other modules' too: the module gets a copy."""
    head, _, inner = name.partition(".")
    if inner:
        own = copied(getattr(module, head))
        values_in(own)[inner] = value
        value = own
    setattr(module, head, value)

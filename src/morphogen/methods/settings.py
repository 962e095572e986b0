"""Whether the settings of a method are of the types that it declares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError


def check_types(method: Any) -> None:
    """Refuse a setting of another type than the dataclass declares, before it meets a comparison.

    An int is a float, a bool is neither, and a list is a tuple. Callables pass wherever a class of ours is declared:
    they have names of their own to be checked by.

    Raises:
        ConfigError: the first setting that does not fit.
    """
    hints = _hints(type(method))
    for setting in fields(method):
        value = getattr(method, setting.name, None)
        if setting.init and not _fits(value, hints[setting.name]):
            raise ConfigError(
                f"{setting.name} is of the wrong type",
                where=type(method).__name__,
                expected=_named(hints[setting.name]),
                found=repr(value)[:80],
            )


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, Sequence) and not isinstance(value, str) and _elements_fit(value, get_args(hint))
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if getattr(hint, "_is_protocol", False):
        return callable(value)
    return not isinstance(hint, type) or isinstance(value, hint)


def _elements_fit(value: Sequence[Any], hints: tuple[Any, ...]) -> bool:
    # A wrong number of elements is the method's to refuse: it knows what each of them means.
    of_each = hints[:1] * len(value) if hints[-1:] == (...,) else hints
    return all(_fits(element, hint) for element, hint in zip(value, of_each, strict=False))


def _named(hint: Any) -> str:
    """A type in words: `float or None`."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_named, get_args(hint)))
    if get_origin(hint) is tuple:
        parts = [each for each in get_args(hint) if each is not ...]
        return "a tuple of " + ", ".join(dict.fromkeys(map(_named, parts)))
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))

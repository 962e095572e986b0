"""What a method is: its settings, and the parts that it puts to work in a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..dense.network import Network
from ..errors import ConfigError
from ..morph.entry import DepthOperator, depth_named
from ..parts import Average
from ..run.part import Part


class Method(ABC):
    """A policy over one network. A method is a frozen dataclass of its settings, checked when it is made."""

    def __post_init__(self) -> None:
        """Refuse settings of the wrong type; a method that checks more begins with this.

        Raises:
            ConfigError: a setting of another type than declared.
        """
        check_types(self)

    def __add__(self, other: Method) -> Method:
        """Both at once, see `Combined`."""
        from .combined import Combined  # which is a method itself

        return Combined((self, other))

    def __str__(self) -> str:
        """Its name, for messages."""
        return type(self).__name__

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """New parts, for one run.

        Raises:
            ConfigError, MorphError: a setting out of range, an unknown operator.
        """


def average_for(
    depth_operator: str | DepthOperator | None, decay: float | None = None, horizon: float = 0.1
) -> list[Part]:
    """The momentum network, where a depth operator needs one."""
    average = Average(decay, horizon)  # which checks the settings, needed or not
    return [] if depth_operator is None or not depth_named(depth_operator).momentum else [average]


def check_growth(who: str, stages: int, multiple_of: int, **shares: float | None) -> None:
    """Refuse settings of growth in equal steps that are out of range.

    Raises:
        ConfigError: a share (of width, of depth) outside (0, 1], less than one stage, multiples of less than 1.
    """
    for name, share in shares.items():
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"{name} out of range", where=who, expected=f"0 < {name} <= 1", found=f"{share}")
    if stages < 1 or multiple_of < 1:
        raise ConfigError(
            "out of range",
            where=who,
            expected="stages and multiple_of at least 1",
            found=f"stages {stages}, multiple_of {multiple_of}",
        )


def whole_blocks(network: Network, parts: int, who: str) -> None:
    """Refuse a network whose deepest stack cannot begin with one of so many parts and be doubled to its full size.

    Raises:
        ConfigError: it has no stack, or the number of blocks does not divide.
    """
    deepest = max(network.stacks, key=lambda stack: stack.size, default=None)
    if deepest is not None and deepest.size % parts:
        raise ConfigError(
            f"this stack cannot begin with 1/{parts} of its blocks",
            where=f"{who}, {deepest.name}",
            expected=f"a multiple of {parts} blocks",
            found=f"{deepest.size}",
            todo="Use NetworkExpansion(depth=...) or Prog, which take any depth",
        )


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

"""`Name(key=value, ...)`: how models and methods are written on the command line and in YAML."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")

LONGEST = 10_000
"""Characters of a model or a method."""


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Split `resnet20(width=32)` into its name and its arguments; a bare name has none.

    Raises:
        ConfigError: neither a name nor a call with literal keyword arguments.
    """
    name, bracket, rest = text.strip().partition("(")
    try:
        if len(text) > LONGEST:
            raise ValueError
        if not bracket:
            return name, {}
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        return name.strip(), {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # values too deep inside each other
        expected = "a name, or NAME(key=value, ...) with plain values"
        raise ConfigError(f"cannot read '{text[:200]}'", expected=expected) from None


def build(text: str, table: Mapping[str, Callable[..., T]], kind: str) -> T:
    """Call the entry of `table` that `text` names, with the arguments it gives.

    Raises:
        ConfigError: an unknown name (near ones are suggested), an unknown argument or a value of another type.
    """
    name, arguments = parse_call(text)
    if name not in table:
        raise ConfigError(f"no {kind} '{name}'", todo=suggest(name, table))
    known = inspect.signature(table[name]).parameters
    for key, value in arguments.items():
        if key not in known:
            settings = "one of " + ", ".join(known) if known else "none"
            raise ConfigError(f"{name} has no setting '{key}'", expected=settings, todo=near(key, known))
        check_value(name, value, known[key])
    return table[name](**arguments)


def check_value(who: str, value: object, setting: inspect.Parameter) -> None:
    """Refuse a value of another type than the default's; a default of None is a name where it is declared as one, or
    else a number, that need not be given.

    Raises:
        ConfigError: where it is, or is a number that no computer's numbers hold.
    """
    default = setting.default
    name = default is None and "str" in str(setting.annotation).split(" | ")
    number = (default is None and not name) or isinstance(default, float)
    kinds = str if name else (int, float) if number else type(default)
    fits = isinstance(value, kinds) or (value is None and default is None)
    huge = isinstance(value, int) and abs(value) >= 2**63
    if not fits or huge or isinstance(value, bool) != isinstance(default, bool):
        expected = "a name" if name else "a number" if number else f"{type(default).__name__} such as {default!r}"
        raise ConfigError(f"{who}: bad value for '{setting.name}'", expected=expected, found=repr(value))


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that names what comes closest, or else what there is."""
    names = list(dict.fromkeys(known))
    return near(name, names) or "There are " + ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")


def near(name: str, known: Iterable[str]) -> str:
    """A sentence that names what comes closest; empty where nothing does."""
    found = nearest(name, known)
    return "Did you mean " + ", ".join(found) + "?" if found else ""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """At most five that are nearly this name, whatever its case, the nearest first."""
    likeness = {each: difflib.SequenceMatcher(None, each.casefold(), name.casefold()).ratio() for each in known}
    least = max(0.55, max(likeness.values(), default=0.0) - 0.15)
    return sorted((each for each in likeness if likeness[each] >= least), key=lambda each: -likeness[each])[:5]

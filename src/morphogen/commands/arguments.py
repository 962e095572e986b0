"""What is typed: flags without a value, lists of one, and what was probably meant where something is mistyped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from ..spec import near, nearest, suggest
from .command import Command

YES_OR_NO = {"true", "false", "yes", "no", "on", "off", "1", "0", "null"}
"""What may follow a flag as its value; YAML's words, and numbers, which are refused."""

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def completed(arguments: Sequence[str], commands: Mapping[str, Command]) -> list[str]:
    """The arguments with `--resume` as `--resume=true`, `--methods Prog` as `--methods=["Prog"]`, and the setting that
    comes first without its name.

    Raises:
        ConfigError: no such command.
    """
    if not arguments or arguments[0].startswith("-"):
        return list(arguments)
    if arguments[0] not in commands:
        raise ConfigError(f"no command '{arguments[0]}'", todo=suggest(arguments[0], commands))
    hints, first = _hints(commands[arguments[0]]), (commands[arguments[0]].first or ("",))[0]
    found: list[str] = []
    taken = False
    for token, following in pairwise([*arguments, ""]):
        name, equals, value = token.removeprefix("--").partition("=")
        kind = hints.get(name) if token.startswith("--") else None
        if taken:
            taken = False
        elif token.startswith("--") and name == first:
            found += [value] if equals else []
        elif kind is not None and _is(kind, bool) and not equals and not _a_value(following, kind):
            found.append(f"{token}=true")
        elif kind is not None and get_origin(kind) in (list, tuple) and _bare(value or following):
            taken = not equals
            numbers = get_args(kind)[0] in (int, float)
            found.append(
                f"--{name}=[{value or following}]" if numbers else f"--{name}={json.dumps([value or following])}"
            )
        else:
            found.append(token)
    return found


def explained(error: str, arguments: Sequence[str], commands: Mapping[str, Command]) -> ConfigError:
    """The parser's error, with what was expected in plain words, and what was probably meant."""
    error = " ".join(error.split())
    command = commands.get(arguments[0]) if arguments else None
    if command is None:
        return ConfigError(error)
    hints = _hints(command)
    known = (*hints, *(["config"] if command.from_file else []), "help")
    if error.lower().startswith("unrecognized arguments: "):
        unknown, read = error.partition(": ")[2], f"See morphogen {command.name} --help"
        if not unknown.startswith("--"):
            setting = "model" if "model" in hints else next(iter(hints))
            example = f"Give the name of the setting too, such as --{setting} {unknown}; {read.lower()}"
            return ConfigError(f"{command.name} does not know what {unknown} is", todo=example)
        meant = [f"--{name}" for name in nearest(unknown.split()[0].partition("=")[0].removeprefix("--"), known)]
        todo = f"Did you mean {', '.join(meant)}?" if meant else read
        return ConfigError(f"{command.name} has no option {unknown}", todo=todo)
    if error.startswith("the following arguments are required: "):
        names = error.partition(": ")[2].replace(f"{command.name}.", "--")
        if command.first:
            names = names.replace(f"--{command.first[0]}", command.first[0].upper())
        return ConfigError(f"{command.name} needs {names}", todo=f"See morphogen {command.name} --help")
    key = re.match(r'Parser key "(\w+)"', error)
    value = re.search(r"(?:Got value|Given value): (.*)$", error)
    if not key or not value or key[1] not in hints:
        return ConfigError(error)
    choices = _choices(hints[key[1]])
    return ConfigError(
        "bad value",
        where=f"--{key[1]}",
        expected=_expected(hints[key[1]]),
        found=value[1],
        todo=near(value[1], choices) if choices else "",
    )


def flags(command: Command) -> set[str]:
    """Its settings that are on or off."""
    return {name for name, hint in _hints(command).items() if _is(hint, bool) and not _is(hint, str)}


def _hints(command: Command) -> dict[str, Any]:
    return get_type_hints(command.config)


def _is(hint: Any, kind: type) -> bool:
    """Whether values are of this kind, or None."""
    return kind in (hint, *get_args(hint))


def _a_value(following: str, kind: Any) -> bool:
    """Whether what follows a flag is its value; where a file may be given in place of true, anything but an option."""
    if _is(kind, str):
        return bool(following) and not following.startswith("--")
    return following.lower() in YES_OR_NO


def _bare(value: str) -> bool:
    """Whether it is one value, and no list in YAML."""
    return bool(value) and not value.lstrip().startswith(("[", "--"))


def _choices(hint: Any) -> list[str]:
    """The words that a setting, or each of its values, may be."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [word for inner in get_args(hint) for word in _choices(inner)]


def _expected(hint: Any) -> str:
    """A kind of value in plain words."""
    if choices := _choices(hint):
        words = ", ".join(choices[:-1]) + f" or {choices[-1]}" if choices[1:] else choices[0]
        return f"a list of {words}" if get_origin(hint) is list else words
    if get_origin(hint) in (list, tuple):
        return "a list, such as [1, 2] or ['a', 'b']"
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type)]
    return next((KINDS[kind] for kind in kinds if kind in KINDS), "a path")

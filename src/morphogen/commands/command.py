"""What a command of the command line is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: as it is typed.
        config: a dataclass of its settings; the help is read off its docstring.
        run: does it, and returns the exit code; its docstring is the description.
        examples: the end of the help.
        first: the setting that may be given without its name, first, and what the help says of it.
        needs_first: whether it must be given.
        many: whether it is a list, of one or more where it must be given.
        from_file: whether settings can come from a YAML file (`--config`).
        configure: makes the settings out of those that were given; `config(**given)` by default.
        again: what to do after Ctrl-C, where something is to be gone on with.
    """

    name: str
    config: type
    run: Callable[[Any], int]
    examples: str
    first: tuple[str, str] | None = None
    needs_first: bool = False
    many: bool = False
    from_file: bool = True
    configure: Callable[[dict[str, Any]], Any] | None = None
    again: str = ""

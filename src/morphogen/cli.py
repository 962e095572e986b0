"""The command line: which command it is, with which settings, and how it ends."""

from __future__ import annotations

import re
import sys
import warnings
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from . import __version__
from .commands.arguments import completed, explained, flags
from .commands.command import Command
from .commands.compare import COMPARE
from .commands.export import EXPORT
from .commands.figure import FIGURE
from .commands.inspect import INSPECT
from .commands.label_maps import LABEL_MAPS
from .commands.plan import PLAN
from .commands.predict import PREDICT
from .commands.recipes import RECIPES
from .commands.recommend import RECOMMEND
from .commands.report import REPORT
from .commands.train import TRAIN
from .errors import MorphogenError, first_line
from .machine.reading import MALFORMED
from .train.checkpoint import Stopped, listening, number_of
from .train.settings import MODE

EXIT_CODES = """exit codes:
  0    done
  2    something that you can mend; what could be done all the same is written (compare: the other runs)
  130  stopped by Ctrl-C; 143 by SIGTERM"""

COMMANDS = {
    command.name: command
    for command in (TRAIN, COMPARE, RECIPES, RECOMMEND, PLAN, INSPECT, EXPORT, PREDICT, REPORT, FIGURE, LABEL_MAPS)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code, see `EXIT_CODES`. Without a command it prints the help."""
    command = None
    try:
        with warnings.catch_warnings(), listening(_end):
            warnings.showwarning = _one_line
            command, settings = _parse(arguments)
            return command.run(settings)
    except MorphogenError as error:
        print(f"morphogen: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"morphogen: cannot read or write a file ({first_line(error)})", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt) as stop:
        stopped = stop if isinstance(stop, Stopped) else Stopped(number_of(stop))
        again = f"; {command.again}" if command is not None and command.again else ""
        print(f"morphogen: {stopped}{again}", file=sys.stderr)
        return 128 + stopped.signal


def _end(number: int) -> None:
    """SIGTERM ends a command as Ctrl-C does."""
    raise KeyboardInterrupt(number)


def _one_line(message: Warning | str, *_: object) -> None:
    """A warning as a user wants to read it, without the line of our code that gave it."""
    print(f"morphogen: {message}", file=sys.stderr)


def _parse(arguments: Sequence[str] | None) -> tuple[Command, object]:
    """The command, and its settings."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = _parser().parse_args(completed(typed, COMMANDS) or ["--help"], defaults=False)
        given: Namespace = parsed.get(parsed.command, Namespace())
        given.pop("config", None)
        command = COMMANDS[parsed.command]
        return command, (command.configure or _as_given(command))(vars(given))
    except (ArgumentError, *MALFORMED) as error:
        raise explained(str(error), typed, COMMANDS) from None


@cache
def _parser() -> ArgumentParser:
    """Of all commands; it takes a tenth of a second."""
    parser = ArgumentParser(
        prog="morphogen",
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=MODE,  # of the commands too
        description="Train vision networks faster by changing their size while they train.",
        epilog=EXIT_CODES,
        formatter_class=_Formatter,  # of the commands too
    )
    commands = parser.add_subcommands(dest="command", required=True)
    for command in COMMANDS.values():
        told = re.split(r"[.;](?:\s|$)", str(command.run.__doc__))[0]
        commands.add_subcommand(command.name, _parser_of(command), help=told)
    return parser


def _as_given(command: Command) -> Callable[[dict[str, Any]], Any]:
    return lambda given: command.config(**given)


def _parser_of(command: Command) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        description=command.run.__doc__,
        epilog=f"{command.examples}\n\n{EXIT_CODES}",
    )
    if command.from_file:
        parser.add_argument("--config", action="config", help="YAML file with the keys below")
    first, told = command.first or ("", "")
    if command.needs_first:
        parser.add_argument(first, nargs="+" if command.many else None, type=str, help=told)
    elif first:
        parser.add_argument(first, nargs="*" if command.many else "?", type=str, default=SUPPRESS, help=told)
    parser.add_class_arguments(command.config, skip={first}, as_group=False)
    for action in parser._actions:
        if action.dest in flags(command):
            action.metavar = "[true|false]"
    return parser


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help with defaults, and examples as they are written."""

"""Checkpoints: all that a run goes on from in one safetensors file, which is whole and as it was written, or refused.

A state is a tree of dictionaries, lists, tuples, numbers, strings and tensors. The tensors are the file's, the tree is
text in its metadata, and so is a hash over both; nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..errors import CheckpointError, ExportError, MorphogenError, first_line
from ..machine.files import replaced
from ..machine.ranks import gathered, rank, ranks
from ..machine.reading import MALFORMED, parse_json

FORMAT = "morphogen checkpoint 1"
KIND = "$"
"""The key by which what JSON lacks is known in the tree: tensors, tuples, dictionaries with other keys than strings."""


TOGETHER = 10
"""Steps after which several ranks ask each other whether to save or to stop: asking takes them all."""


class Stopped(Exception):
    """A run was asked to stop, and has saved all it goes on from.

    Attributes:
        signal: the number of the signal that asked.
    """

    def __init__(self, number: int, where: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{f', {where}' if where else ''}")
        self.signal = number


def number_of(stop: KeyboardInterrupt) -> int:
    """The signal that it came by."""
    return stop.args[0] if stop.args else signal.SIGINT


class Checkpoints:
    """The checkpoints of one run, in a folder of their own; the last few are kept.

    Attributes:
        folder: made where it is missing.
        every: seconds between two of them; 0 saves after every step.
        keep: how many stay.
    """

    def __init__(self, folder: Path, every: float = 300.0, keep: int = 2):
        self.folder, self.every, self.keep = folder, every, keep
        self._saved = time.monotonic()
        self._asked: int | None = None

    def files(self) -> list[Path]:
        """Those that are there, the latest first."""
        return sorted(self.folder.glob("epoch-*-step-*.safetensors"), reverse=True)

    def latest(self) -> dict[str, Any] | None:
        """The state of the latest one that is whole; None where there is none at all.

        Raises:
            CheckpointError: all that are there are damaged, or another rank finds another one.
        """
        refused: CheckpointError | None = None
        name, state = "none", None
        for path in self.files():
            try:
                name, state = path.name, read(path)
                break
            except CheckpointError as error:
                warnings.warn(f"{error}; the one before it is taken", stacklevel=2)
                refused = refused or error
        if state is None and refused is not None:
            raise refused
        names = dict.fromkeys(gathered(name))
        if len(names) > 1:
            raise CheckpointError(
                "the ranks find different checkpoints",
                where=str(self.folder),
                expected="a folder that all nodes share",
                found=" and ".join(names),
            )
        return state

    def after_step(self, epoch: int, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save where it is time to, or where the run was asked to stop.

        Raises:
            Stopped: it was asked to, and has saved.
        """
        if ranks() > 1 and step % TOGETHER:
            return
        due = rank() == 0 and time.monotonic() - self._saved >= self.every
        wishes = gathered((due, self._asked))
        asked = next((number for _, number in wishes if number is not None), None)
        if asked is not None or any(due for due, _ in wishes):
            self.save(epoch, step, state())
            gathered(None)  # none leaves before it is saved
        if asked is not None:
            raise Stopped(asked, f"saved in epoch {epoch + 1} after step {step}")

    def told(self) -> str:
        """Where the latest one is, for a message."""
        names = [path.stem.split("-") for path in self.files()[:1]]
        return (
            "".join(f"last saved in epoch {int(n[1]) + 1} after step {int(n[3])}" for n in names)
            or "nothing was saved yet"
        )

    def save(self, epoch: int, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint and remove the oldest; where that fails, say so and go on with those that are there. Of
        several ranks the first does it."""
        if rank():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"epoch-{epoch:05}-step-{step:07}.safetensors"
            write(path, state)
            for later in self.files():  # of a way that the run has gone back from
                if later.name > path.name:
                    later.unlink()
            self._remove_but(self.keep)
        except (OSError, ExportError) as error:
            if self._asked is not None:
                raise CheckpointError(f"the run stops, and cannot be saved ({first_line(error)})") from error
            warnings.warn(f"no checkpoint could be saved ({first_line(error)}); the last one stays", stacklevel=2)
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Remove them all: the run is over, or another one begins."""
        if rank() == 0:
            self._remove_but(0)

    def _remove_but(self, count: int) -> None:
        """Keep the latest few; what a killed process had begun to write goes too."""
        for path in (*self.files()[count:], *self.folder.glob(".epoch-*.part")):
            path.unlink()

    def ask(self, number: int) -> None:
        """End the run after the step at work, for this signal; raises KeyboardInterrupt at a second Ctrl-C."""
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt(number)
        self._asked = number


@contextmanager
def listening(ask: Callable[[int], None]) -> Iterator[None]:
    """Call `ask` with the signal's number at every SIGTERM and Ctrl-C that would else end the process. Only a process's
    main thread hears of them."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, lambda number, _: ask(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state; a file already there stays until the new one is whole.

    Raises:
        ExportError: it cannot be written.
        CheckpointError: something in it is neither plain data nor a tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_packed(state, tensors, {}))
    content = save_tensors(tensors, {"format": FORMAT, "tree": tree, "sha256": _digest(tree, tensors)})
    with replaced(path) as file:
        file.write(content)


def read(path: Path) -> dict[str, Any]:
    """The state that was written, its tensors on the CPU.

    Raises:
        CheckpointError: there is no such file, or it is not what was written.
    """
    try:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        metadata = parse_json(content[8 : 8 + size])["__metadata__"]
        tensors = load_tensors(content)
        if metadata["format"] != FORMAT:
            raise CheckpointError(
                "written by another version of Morphogen",
                where=str(path),
                expected=FORMAT,
                found=str(metadata["format"]),
                todo="Continue with that version, or start over with --resume false",
            )
        if metadata["sha256"] != _digest(metadata["tree"], tensors):
            raise ValueError("its checksum is another one")
        state = _unpacked(parse_json(metadata["tree"], nan=True), tensors)
        if not isinstance(state, dict):
            raise ValueError("it holds no state")
        return state
    except MorphogenError:
        raise
    except (OSError, SafetensorError, MemoryError, RuntimeError, *MALFORMED) as error:
        raise CheckpointError(
            f"not a checkpoint, or a damaged one ({first_line(error)})",
            where=str(path),
            expected=f"a file as `morphogen train` writes it ({FORMAT})",
        ) from error


def compare_runs(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises CheckpointError where a checkpoint is of a run with other settings."""
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            raise CheckpointError(
                "the checkpoint is of another run",
                where=key,
                expected=f"{ours.get(key)}, as this one",
                found=f"{theirs.get(key)}",
                todo="Give the settings it was begun with, or begin anew: --output, or --overwrite",
            )


def _packed(value: Any, tensors: dict[str, torch.Tensor], known: dict[int, str]) -> Any:
    """A tree as JSON types; its tensors go into `tensors`, one that is there twice once."""
    if isinstance(value, torch.Tensor):
        if id(value) not in known:
            known[id(value)] = f"{len(tensors)}"
            tensors[known[id(value)]] = value.detach().to("cpu", copy=True).contiguous()
        return {KIND: "tensor", "name": known[id(value)]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and KIND not in value:
            return {key: _packed(item, tensors, known) for key, item in value.items()}
        items = [[_packed(key, tensors, known), _packed(item, tensors, known)] for key, item in value.items()]
        return {KIND: "items", "items": items}
    if isinstance(value, tuple):
        return {KIND: "tuple", "items": [_packed(item, tensors, known) for item in value]}
    if isinstance(value, list):
        return [_packed(item, tensors, known) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        "something in the state of the run cannot be saved",
        expected="dictionaries, lists, numbers, strings and tensors",
        found=type(value).__name__,
    )


def _unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(KIND):
        case None:
            return {key: _unpacked(item, tensors) for key, item in value.items()}
        case "tensor":
            return tensors[value["name"]]
        case "tuple":
            return tuple(_unpacked(item, tensors) for item in value["items"])
        case "items":
            return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in value["items"]}
        case kind:
            raise ValueError(f"{kind!r} is not a kind of value")


def _digest(tree: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of all that is in a file."""
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

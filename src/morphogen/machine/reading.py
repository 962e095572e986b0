"""Files from elsewhere are data: nothing in them is imported, called or run, and no number in them decides alone how
much memory is taken.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from ..errors import first_line

MOST_TEXT = 100_000_000
"""Bytes of JSON in one file, which is also safetensors' own limit for its header."""

DEEPEST = 32
"""Lists and dictionaries inside each other; ours have eight."""

MOST_VALUES = 10_000_000
"""Values in a pickled tree, where one that is there twice counts twice."""

MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What code raises that meets another kind of data than it was written for."""

DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
"""PyTorch's types of numbers, by name."""


def read_text(path: Path) -> str:
    """A text file of a bounded size; raises ValueError or OSError."""
    if os.path.getsize(path) > MOST_TEXT:
        raise ValueError(f"more than {MOST_TEXT:,} bytes of text")
    return path.read_text(encoding="utf-8")


def parse_json(text: str | bytes, *, nan: bool = False) -> Any:
    """JSON of a bounded size and depth.

    Args:
        text: as it was written.
        nan: numbers may be infinite or none at all.

    Raises:
        ValueError: it is no JSON, too large, too deep, has a key twice, or a number that is not finite.
    """
    if len(text) > MOST_TEXT:
        raise ValueError(f"more than {MOST_TEXT:,} bytes of JSON")
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=float if nan else _no_number)
    except RecursionError:
        raise ValueError("lists and dictionaries too deep inside each other") from None
    for value in walk(found):
        if not nan and isinstance(value, float) and value in (float("inf"), float("-inf")):  # 1e999
            raise ValueError("a number that is not finite")
    return found


def walk(tree: Any) -> list[Any]:
    """All that is in nested lists and dictionaries, each as often as it is there.

    Raises:
        ValueError: they are too deep or too many.
    """
    found, level = [tree], [tree]
    for _ in range(DEEPEST):
        inside: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inside += value.values()
            elif isinstance(value, (list, tuple)):
                inside += value
            if len(found) + len(inside) > MOST_VALUES:
                raise ValueError(f"more than {MOST_VALUES:,} values")
        if not inside:
            return found
        found += inside
        level = inside
    raise ValueError(f"lists and dictionaries more than {DEEPEST} deep inside each other")


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, if it is plain data and dense tensors; they are on the CPU.

    PyTorch's `weights_only` runs no code. Tensors are mapped from the file, which bounds them by its size, so that a
    compressed file or a false size in it takes no memory.

    Raises:
        ValueError: it is anything else, or damaged.
        OSError: it cannot be opened.
    """
    with open(path, "rb"):
        pass
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed, which torch.save does not do")
            if sum(entry.file_size for entry in entries) > os.path.getsize(path):
                raise ValueError("it claims to hold more than its size")
            if (torn := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {torn} is another one")
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        values = walk(found)
    except UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
        what = f", {named[1]}" if named else ""
        raise ValueError(
            f"it holds more than tensors and plain data{what}; write torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # whatever the readers stumble over in a damaged file
        raise ValueError(first_line(error)) from error
    for value in values:
        if isinstance(value, torch.Tensor) and not is_dense(value):
            raise ValueError(f"a tensor of another kind than dense ones ({value.layout}, on {value.device})")
        if isinstance(value, torch.Tensor) and value.numel() * value.element_size() > os.path.getsize(path):
            raise ValueError(f"a tensor of {value.numel():,} numbers, more than the file holds")
    return found


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether its values are in the CPU's memory, each in its place."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and tensor.device.type == "cpu" and not tensor.is_quantized


def whole(value: Any, least: int, most: int) -> int:
    """A number from a file that must be whole and within bounds; raises ValueError."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{str(value)[:40]} where a whole number from {least:,} to {most:,} is expected")
    return value


def within(value: Any, least: float, most: float) -> float:
    """A number from a file that must be within bounds; raises ValueError."""
    if type(value) not in (int, float) or not least <= value <= most:
        raise ValueError(f"{str(value)[:40]} where a number from {least:g} to {most:g} is expected")
    return float(value)


def words(value: Any) -> list[str]:
    """A list of texts from a file; raises ValueError for anything else."""
    if type(value) is not list:
        raise ValueError(f"{str(value)[:40]} where a list is expected")
    return [word(each) for each in value]


def word(value: Any) -> str:
    """A text from a file; raises ValueError for anything else."""
    if type(value) is not str:
        raise ValueError(f"{str(value)[:40]} where a text is expected")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found

"""Sorted indices as text, `"0:32,40:48"`, and back: read from a file, they are checked before they take memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..machine.reading import whole, word

MOST_UNITS = 2**24
"""Channels and blocks that the sub-networks of one file have together; the largest networks have 2**19 each."""

MOST_SIDE = 2**13
"""Pixels of the side of a network's input."""

RANGE = re.compile(r"(\d{1,9}):(\d{1,9})", re.ASCII)
"""A run of indices: the first, and the one behind the last."""


def to_ranges(indices: tuple[int, ...]) -> str:
    """Sorted indices as text: `"0:32,40:48"`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([index, index + 1])
    return ",".join(f"{start}:{stop}" for start, stop in runs)


def read_ranges(alive: Mapping[str, str]) -> dict[str, list[tuple[int, int]]]:
    """The inverse of `to_ranges` for each name, checked but not spread out: first index and end of each run.

    Raises:
        ValueError: no ranges, or not in order.
    """
    found = {}
    for name, text in alive.items():
        found[name] = [_read_range(run) for run in text.split(",")] if word(text) else []
        ends = [end for run in found[name] for end in run]
        if ends != sorted(set(ends)):
            raise ValueError(f"{name}: runs that are empty, or not in order")
    return found


def _read_range(text: str) -> tuple[int, int]:
    if (run := RANGE.fullmatch(text)) is None:
        raise ValueError(f"{text[:40]!r} is not a range")
    return int(run[1]), int(run[2])


def spread(runs: Mapping[str, list[tuple[int, int]]]) -> dict[str, tuple[int, ...]]:
    """Every index of the runs of each name."""
    return {name: tuple(index for run in each for index in range(*run)) for name, each in runs.items()}


def read_resolution(sides: Any) -> tuple[int, int] | None:
    """Height and width from a file; raises ValueError or TypeError."""
    if sides is None:
        return None
    height, width = sides
    return whole(height, 1, MOST_SIDE), whole(width, 1, MOST_SIDE)

"""What a wild model is: how it is built, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Wild:
    """One model: `build` gives it with random weights, `example` what it is called with, of two samples."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any]


def image(size: int = 64, channels: int = 3) -> Callable[[], torch.Tensor]:
    """Two square images."""
    return lambda: torch.randn(2, channels, size, size)


def volume(size: int = 32, channels: int = 1) -> Callable[[], torch.Tensor]:
    """Two cubes."""
    return lambda: torch.randn(2, channels, size, size, size)


def video(frames: int = 8, size: int = 32) -> Callable[[], torch.Tensor]:
    """Two clips, channels before frames."""
    return lambda: torch.randn(2, 3, frames, size, size)


def ids(length: int = 12, vocabulary: int = 96) -> torch.Tensor:
    """Two sentences; the first tokens, which often have a meaning of their own, do not occur."""
    return torch.randint(5, vocabulary, (2, length))


Table = dict[str, tuple[Callable[[], Any], dict[str, Any]]]
"""An example and the settings of each class."""


def rows(package: str, build: Callable[[str, dict[str, Any]], nn.Module], *tables: Table) -> dict[str, Wild]:
    """The models of a package's tables."""
    return {
        f"{package}:{name}": Wild(partial(build, name, settings), example)
        for table in tables
        for name, (example, settings) in table.items()
    }

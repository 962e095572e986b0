"""Time on a device: what has been asked of it is done before the clock is read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def now(device: torch.device) -> float:
    """Seconds, read when the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turn(pieces: Sequence[Callable[[], object]], device: torch.device, rounds: int = 5) -> list[float]:
    """Median seconds of each of several pieces of work, done in turn, so that a noisy machine hits all alike.

    Every piece runs once before the clock starts.
    """
    for piece in pieces:
        piece()
    seconds: list[list[float]] = [[] for _ in pieces]
    for _ in range(rounds):
        for piece, times in zip(pieces, seconds, strict=True):
            start = now(device)
            piece()
            times.append(now(device) - start)
    return [statistics.median(times) for times in seconds]

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
    seconds = [[_seconds(piece, device) for piece in pieces] for _ in range(rounds)]
    return [statistics.median(times) for times in zip(*seconds, strict=True)]


def rounds_of(pieces: Sequence[Callable[[], object]], device: torch.device, seconds: float) -> list[list[float]]:
    """Seconds of each of several pieces of work done in turn, round by round, for about so many seconds.

    Every piece runs twice before the clock starts. One that takes less than 20 ms is done several times in a row and
    its time divided: so a GPU's queue stays filled, as in training.

    Returns:
        For each piece one figure a round; at least three rounds, however long they take.
    """
    begin = time.perf_counter()
    for piece in pieces:
        piece()
    in_a_row = [min(10, max(1, round(0.02 / _seconds(piece, device)))) for piece in pieces]
    rounds: list[list[float]] = []
    while len(rounds) < 3 or time.perf_counter() - begin < seconds:
        rounds.append([_seconds(piece, device, times) for piece, times in zip(pieces, in_a_row, strict=True)])
    return [list(times) for times in zip(*rounds, strict=True)]


def _seconds(piece: Callable[[], object], device: torch.device, times: int = 1) -> float:
    start = now(device)
    for _ in range(times):
        piece()
    return (now(device) - start) / times

"""Time on a device: what has been asked of it is done before the clock is read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def now(device: torch.device) -> float:
    """Seconds, read when the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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


class StepClock:
    """Seconds of training steps by kind, without waiting for the device in between.

    Attributes:
        seconds: of the steps that have been read off the clock, by kind; see `read`.
    """

    def __init__(self, device: torch.device):
        self.seconds: dict[int, list[float]] = {}
        self._cuda = device.type == "cuda"
        self._marks: dict[int, list[tuple[Any, Any]]] = {}
        self._open: tuple[int, Any] | None = None

    def start(self, kind: int) -> None:
        """A step of a kind begins; a step that has begun already goes on."""
        if self._open is None:
            self._open = kind, self._mark()

    def stop(self) -> None:
        """The step is over."""
        if self._open is not None:
            kind, begin = self._open
            self._marks.setdefault(kind, []).append((begin, self._mark()))
            self._open = None

    def read(self, *, wait: bool = True) -> dict[int, list[float]]:
        """`seconds` with every step until now, when the device has done it; without `wait`, with those it has done."""
        if self._cuda and wait:
            torch.cuda.synchronize()
        for kind, pairs in self._marks.items():
            done = len(pairs) if wait or not self._cuda else sum(end.query() for _, end in pairs)
            self.seconds.setdefault(kind, []).extend(self._between(*pair) for pair in pairs[:done])
            del pairs[:done]
        return self.seconds

    def medians(self) -> dict[int, float]:
        """Median seconds of each kind; the first step of a kind, which warms up, only where it is the only one."""
        return {kind: statistics.median(seconds[1:] or seconds) for kind, seconds in self.read().items()}

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1000 if self._cuda else end - begin

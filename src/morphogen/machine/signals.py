"""Signals that wait until a change is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Held:
    """Signals that functions of Python handle (a Ctrl-C, a scheduler's SIGTERM) wait between `start` and `stop`.

    What such a function raises, it raises wherever the main thread is just then, and never in another. `stop` may be
    called again where something was raised in it.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[..., Any]] = {}
        self._came: list[int] = []

    def start(self) -> None:
        """From here on they wait."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._note)

    def stop(self) -> None:
        """They are handled as before, those that came first of all; raises what their functions raise."""
        for number in [*self._handlers]:
            signal.signal(number, self._handlers[number])
            del self._handlers[number]
        while self._came:
            signal.raise_signal(self._came.pop(0))

    def _note(self, number: int, _: Any) -> None:
        if number not in self._came:
            self._came.append(number)

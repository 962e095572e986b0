"""Where the time of a forward and backward pass goes: operations whose FLOPs count, and all others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from ..machine.private import TorchDispatchMode
from ..machine.timing import now


@dataclass(frozen=True)
class Operations:
    """How the time of all operations divides.

    Attributes:
        counted: share that goes to operations whose FLOPs are counted: convolutions, matrix products, attention.
        others: names of the others that take most.
    """

    counted: float
    others: tuple[str, ...]


def divide(work: Callable[[], object], device: torch.device) -> Operations:
    """Run some work with a clock on every operation."""
    with _Clocks(device) as clocks:
        work()
    counted = sum(seconds for op, seconds in clocks.seconds.items() if op in flop_registry)
    others = sorted((-seconds, op.__name__) for op, seconds in clocks.seconds.items() if op not in flop_registry)
    return Operations(counted / sum(clocks.seconds.values()), tuple(name for _, name in others[:3]))


class _Clocks(TorchDispatchMode):
    """Adds up each operation's time, with the device idle at both ends."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.seconds: defaultdict[Any, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = now(self.device)
        result = func(*args, **(kwargs or {}))
        if not func.is_view:  # another look at the same memory; all it takes is this clock
            self.seconds[func.overloadpacket] += now(self.device) - start
        return result

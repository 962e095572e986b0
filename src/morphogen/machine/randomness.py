"""Random numbers of one's own, that leave everybody else's alone."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_random(device: torch.device) -> Iterator[None]:
    """Afterwards the random numbers of Python, of NumPy where it is in use, and of PyTorch are where they were."""
    numpy = sys.modules.get("numpy")
    python, state = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(state)

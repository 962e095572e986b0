"""Random numbers of one's own, that leave everybody else's alone."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_random(device: torch.device) -> Iterator[None]:
    """Afterwards the random numbers of Python, of NumPy where it is in use, and of PyTorch are where they were."""
    put_back = random_state([device] if device.type == "cuda" else [])
    try:
        yield
    finally:
        put_back()


def random_state(devices: list[torch.device]) -> Callable[[], None]:
    """What brings the random numbers of Python, NumPy and PyTorch (on the CPU, and on these CUDA devices) back to where
    they are now."""
    numpy = sys.modules.get("numpy")
    python, own = random.getstate(), torch.get_rng_state()
    state = None if numpy is None else numpy.random.get_state()
    on_devices = [torch.cuda.get_rng_state(device) for device in devices]

    def put_back() -> None:
        random.setstate(python)
        torch.set_rng_state(own)
        if numpy is not None:
            numpy.random.set_state(state)
        for device, its in zip(devices, on_devices, strict=True):
            torch.cuda.set_rng_state(its, device)

    return put_back


def drawn_so_far() -> tuple[object, ...]:
    """Where the random numbers of Python are, and of NumPy where it is in use: another place after some were drawn."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return (random.getstate(),)
    _, words, place, *gauss = numpy.random.get_state()
    return random.getstate(), words.tobytes(), place, *gauss

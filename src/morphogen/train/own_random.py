"""Random numbers of a run, whatever others draw between its epochs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class OwnRandom:
    """PyTorch's random numbers on the CPU and a device, kept apart from those of the rest of the process.

    Attributes:
        state: of the generators, where `active` will begin.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self.state = self.now()

    @contextmanager
    def active(self) -> Iterator[None]:
        """The run draws; afterwards the others go on where they were."""
        others = self.now()
        self._set(self.state)
        try:
            yield
        finally:
            self.state = self.now()
            self._set(others)

    def now(self) -> list[torch.Tensor]:
        """The state of the generators at this moment."""
        cuda = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        return [torch.random.get_rng_state(), *cuda]

    def _set(self, state: list[torch.Tensor]) -> None:
        torch.random.set_rng_state(state[0])
        for cuda in state[1:]:
            torch.cuda.set_rng_state(cuda, self._device)

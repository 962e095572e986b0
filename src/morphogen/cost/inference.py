"""How many images a second a pruned network classifies, beside the dense one (PruneTrain, Table 2)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..machine.timing import rounds_of

BATCHES = (10, 100)
"""The paper's batch sizes."""

SECONDS = 0.5
"""For which each batch size is measured; three rounds where they take longer."""


@dataclass
class InferenceSpeed:
    """Images a second at a batch size, of the dense network and of the one that training left."""

    batch: int
    dense: float
    pruned: float


def inference_speeds(
    dense: nn.Module, pruned: nn.Module, images: Callable[[int], torch.Tensor], device: torch.device
) -> list[InferenceSpeed]:
    """Measure both networks in turn at every batch size; they are left in evaluation mode.

    Args:
        dense, pruned: on the device.
        images: makes a batch of so many on the device.
        device: theirs.
    """
    models = [dense.eval(), pruned.eval()]
    found = []
    with torch.inference_mode():
        for batch in BATCHES:
            rounds = rounds_of([partial(model, images(batch)) for model in models], device, SECONDS)
            found.append(InferenceSpeed(batch, *(batch / statistics.median(times) for times in rounds)))
    return found

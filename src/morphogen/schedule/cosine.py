"""The learning rate as a pure function of progress, so that an epoch may begin again and a batch may change."""

from __future__ import annotations

import math

BEGIN = 1e-3
"""Share of the peak at which a warm-up begins."""


def cosine_share(done: float, total: float, warmup: float) -> float:
    """The learning rate as a share of its peak: a linear warm-up, then a cosine to 0 (Loshchilov and Hutter).

    Args:
        done: how much of the run is over.
        total: the whole run, in the same unit.
        warmup: the part of it in which the rate rises.
    """
    if done < warmup:
        return BEGIN + (1 - BEGIN) * done / warmup
    return (1 + math.cos(math.pi * (done - warmup) / (total - warmup))) / 2

"""What every operator but a copying one gives to tensors that are no weights."""

from __future__ import annotations

import torch

from ..morph.growth import Gap

BEGIN = {"bias": 0.0, "scale": 1.0, "shift": 0.0, "mean": 0.0, "variance": 1.0}


def reset(gap: Gap) -> torch.Tensor:
    """New channels of a normalisation begin as they would in a new network: 1, 0, mean 0, variance 1.

    A parameter used directly (a layer scale, a token) has no such value; its new entries take the mean of
    the old ones, so that a layer scale keeps its magnitude.
    """
    kind = gap.map.role.kind
    return gap.map.carry(gap.old, BEGIN[kind] if kind in BEGIN else float(gap.old.double().mean()))

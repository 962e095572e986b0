"""What operators that copy nothing give to tensors that are no weights (`quiet` has scales of its own)."""

from __future__ import annotations

import torch

from ..morph.growth import Gap
from ..morph.tensors import like

BEGIN = {"bias": 0.0, "scale": 1.0, "shift": 0.0, "mean": 0.0, "variance": 1.0}


def reset(gap: Gap) -> torch.Tensor:
    """New channels of a normalisation begin as they would in a new network: 1, 0, mean 0, variance 1.

    A parameter used directly has no such value. Where it is a vector (a layer scale), new entries take the mean
    of the old ones; where it is more (a position embedding), normal numbers of the old ones' mean and
    standard deviation, since equal entries would stay equal.
    """
    kind = gap.map.role.kind
    if kind in BEGIN:
        return gap.map.carry(gap.old, BEGIN[kind])
    old = gap.old.to(torch.promote_types(gap.old.dtype, torch.float32))
    if sum(size > 1 for size in gap.map.new_shape) < 2 or not (gap.old.is_floating_point() or gap.old.is_complex()):
        return gap.map.carry(gap.old, old.mean().item())
    fresh = old.mean() + old.std(correction=0) * gap.randn(*gap.map.new_shape)
    return like(gap.map.carry(gap.old, fresh.to(gap.old.dtype)), gap.old)

"""Random growth: every new weight as He et al. initialise a new layer."""

from __future__ import annotations

from math import sqrt

import torch

from ..morph.growth import Gap, operator
from ..morph.tensors import like
from .reset import reset


def he(gap: Gap, *shape: int) -> torch.Tensor:
    """Normal numbers of standard deviation sqrt(2 / fan-in) of the grown layer (He et al., ICCV 2015)."""
    return gap.randn(*shape) * sqrt(2 / gap.fan_in)


@operator("random")
def random(gap: Gap) -> torch.Tensor:
    """New entries of a weight are He-normal, whatever they connect (Network Expansion, Table 6, `random`)."""
    if gap.map.role.kind != "weight":
        return reset(gap)
    fresh = he(gap, *gap.map.new_shape).to(gap.old.dtype)
    return like(gap.map.carry(gap.old, fresh), gap.old)

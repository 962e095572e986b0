"""Depth operators: what the blocks that enter begin with (AutoProg, section 3.3, Table 4; Network Expansion, 3.4)."""

from __future__ import annotations

import torch

from ..dense.depth import stacked
from ..morph.entry import Entry, depth_operator
from .reset import BEGIN


@depth_operator("random", table=stacked)
def random_blocks(entry: Entry) -> torch.Tensor:
    """RandInit: new blocks on top of the old ones, as the model's own code made them.

    Drawn from the tensor's mean and standard deviation when it was traced. Constants (ones, zeros, a layer scale)
    come back exactly; running statistics begin as in a new layer.
    """
    like = entry.copy(entry.below)
    if entry.initial is None:
        return like.zero_()
    if entry.role.kind in ("mean", "variance"):
        return like.fill_(BEGIN[entry.role.kind])
    mean, std = entry.initial
    return entry.randn_like(like).mul_(std).add_(mean) if std else like.fill_(mean)


@depth_operator("stack", table=stacked)
def stack(entry: Entry) -> torch.Tensor:
    """Stacking: the old blocks again, from the first (i mod l_s; StackBERT)."""
    return entry.copy(entry.before[entry.rank % len(entry.before)])


@depth_operator("interpolate")
def interpolate(entry: Entry) -> torch.Tensor:
    """Interpolation: a copy of the block below."""
    return entry.copy(entry.below)


@depth_operator("identity", silent=True)
def identity(entry: Entry) -> torch.Tensor:
    """Identity: a copy of the block below whose residual branches end in zeros; the function stays the same."""
    copied = entry.copy(entry.below)
    return copied.zero_() if entry.writes else copied


@depth_operator("rezero", silent=True, rezero=True)
def rezero(entry: Entry) -> torch.Tensor:
    """Identity as in AutoProg's Table 4: a copy of the block below, a learned factor of zero on each branch.

    A branch that ends in a parameter of its own (a layer scale) has its factors already; they become zero.
    """
    copied = entry.copy(entry.below)
    return copied.zero_() if entry.writes and not entry.scalable else copied


@depth_operator("momentum", momentum=True)
def momentum(entry: Entry) -> torch.Tensor:
    """Network Expansion's: a copy of the block below in the momentum network; old blocks stay as they are."""
    return entry.copy(entry.below, averaged=True)


@depth_operator("mogrow", momentum=True, everything=True)
def mogrow(entry: Entry) -> torch.Tensor:
    """Momentum Growth (AutoProg, equation 5): Interpolation, the whole grown network from the momentum network."""
    return entry.copy(entry.below, averaged=True)


@depth_operator("mostack", table=stacked, momentum=True, everything=True)
def mostack(entry: Entry) -> torch.Tensor:
    """Stacking with Momentum Growth: as `stack`, the whole grown network from the momentum network."""
    return entry.copy(entry.before[entry.rank % len(entry.before)], averaged=True)

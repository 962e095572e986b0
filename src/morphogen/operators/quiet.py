"""Width growth that leaves the function as it is, and that a high learning rate does not throw away."""

from __future__ import annotations

import torch

from ..morph.growth import Gap, operator
from .orthogonal import orthogonal


@operator("quiet", preserving=True)
def quiet(gap: Gap) -> torch.Tensor:
    """Orthogonal growth with new inputs of old outputs at zero, and new channels no louder than the old ones.

    The paper's equations leave the scale of W^r free (Network Expansion, equation 5); at zero the function stays, and
    new filters are orthogonal to the old ones all the same. What new channels say is not read by old ones at first; it
    is learnt, since the gradient of those weights is not zero.

    The scale of a normalisation (batch, layer, group norm) begins at the old channels' root mean square, not at 1. The
    curvature along weights that read a channel grows with the square of its size, and training has brought the old
    ones down to what the learning rate can bear. New ones at 1 are beyond it: at a learning rate of 0.4 the loss goes
    from 0.6 to 9 in ten steps, though the function was kept (LOG.md, 2026-11-26).

    With normalisation over channels (layer norm, group norm) the function changes all the same, by their statistics.
    """
    if gap.map.role.kind == "scale" and gap.old.numel():
        old = gap.old.to(torch.promote_types(gap.old.dtype, torch.float32))
        size = old.square().mean().sqrt().to(gap.old.dtype)  # a tensor, since a number would wait for the device
        return gap.map.carry(gap.old, size.expand(gap.map.new_shape))
    return orthogonal(gap, scale=0.0)

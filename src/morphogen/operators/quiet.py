"""Width growth that leaves the function as it is, and that a high learning rate does not throw away."""

from __future__ import annotations

import torch

from ..morph.growth import Gap, operator
from ..morph.tensors import like
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

    With normalisation over channels (layer norm, group norm) the function changes all the same, by their statistics. So
    that new channels do not drown the old ones there, weights from new inputs to new outputs are no larger than the old
    ones': He-normal weights are six times as large as those that transformers begin with (a deviation of 0.02).
    """
    if gap.map.role.kind == "scale" and gap.old.numel():
        return gap.map.carry(gap.old, _size(gap.old).to(gap.old.dtype).expand(gap.map.new_shape))
    grown = orthogonal(gap, scale=0.0)
    if gap.map.role.kind == "direct":
        return _apart(gap, grown)
    if gap.map.role.kind != "weight" or gap.map.role.blockwise or not gap.map.carried:
        return grown
    out, into = gap.carried(gap.map.role.outs), gap.carried(gap.map.role.ins)
    new_out, new_in = (~out).nonzero(), (~into).nonzero().flatten()
    weight = gap.matrices(grown)
    for number in (~gap.fresh).nonzero().flatten().tolist():
        matrix = weight[number]  # a view: filling it fills `weight`
        old, new = matrix[out][:, into], matrix[new_out, new_in]
        if old.numel() and new.numel():
            matrix[new_out, new_in] = new * (_size(old) / _size(new)).clamp(max=1).to(new.dtype)
    return like(gap.tensor(weight), gap.old)


def _apart(gap: Gap, grown: torch.Tensor) -> torch.Tensor:
    """A parameter of three axes or more of which several grow, with zeros where new positions of one meet old ones of
    another. It may be a weight in disguise (a kernel that is modulated, or mixed of several), and which axis is summed
    over is not known. A matrix may as well be what a weight is multiplied with, which has the zeros already."""
    fresh = [
        (~axis.carried).view([-1 if i == dim else 1 for i in range(grown.ndim)])
        for dim, axis in enumerate(gap.map.axes)
        if axis is not None and not bool(axis.carried.all())
    ]
    if len(fresh) < 2 or sum(size > 1 for size in grown.shape) < 3:
        return grown
    count = torch.stack(torch.broadcast_tensors(*fresh)).sum(0)
    return grown.masked_fill(((count > 0) & (count < len(fresh))).to(grown.device), 0)


def _size(values: torch.Tensor) -> torch.Tensor:
    """The root mean square, a tensor, since a number would wait for the device."""
    sizes = values.abs()
    return sizes.to(torch.promote_types(sizes.dtype, torch.float32)).square().mean().sqrt().clamp_min(1e-30)

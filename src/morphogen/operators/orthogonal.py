"""Orthogonal growth: new filters say what the old ones do not (Network Expansion, section 3.3)."""

from __future__ import annotations

import torch

from ..morph.growth import Gap, operator
from ..morph.tensors import like
from .random import he, random
from .reset import reset


@operator("orthogonal")
def orthogonal(gap: Gap, scale: float = 1.0) -> torch.Tensor:
    """New filters orthogonal to the old ones and to each other (equations 2 to 5).

    Of the weight as a matrix of filters (out, in, taps), the old block is W^o. Old inputs to new outputs
    (W^g) are orthogonal to the rows of W^o, new inputs to old outputs (W^r) to its columns, each scaled to
    the mean norm of the old ones; new inputs to new outputs are He-normal. Where the old vectors leave no or
    too little room (a 1 x 1 convolution of full rank), the room there is is used, and the remaining vectors
    are He-normal. So are matrices that are new altogether: of whole groups that a convolution gains, of experts.

    Args:
        gap: what grows.
        scale: of W^r, in mean norms of the old ones; the equations leave it free.
    """
    role = gap.map.role
    if role.kind != "weight":
        return reset(gap)
    if not gap.map.carried:
        return random(gap)  # nothing survives that the new filters could repeat
    weight = gap.matrices(gap.map.carry(gap.old.contiguous()))
    fresh = gap.fresh
    if fresh.any():
        weight[fresh] = he(gap, int(fresh.sum()), *weight.shape[1:]).to(weight.dtype)
    if role.blockwise:
        return like(gap.tensor(weight), gap.old)
    carried_out, carried_in = gap.carried(role.outs), gap.carried(role.ins)
    old_out, new_out = carried_out.nonzero().flatten(), (~carried_out).nonzero().flatten()
    old_in, new_in = carried_in.nonzero().flatten(), (~carried_in).nonzero().flatten()
    for number in (~fresh).nonzero().flatten().tolist():
        matrix = weight[number]  # a view: filling it fills `weight`
        old = matrix[old_out][:, old_in]
        taps = old.shape[-1]
        if len(new_out):
            rows = orthogonal_rows(gap, old.flatten(1), len(new_out))
            matrix[new_out[:, None], old_in] = rows.view(-1, len(old_in), taps).to(weight.dtype)
        if len(new_in):
            columns = orthogonal_rows(gap, old.transpose(0, 1).flatten(1), len(new_in))
            columns = scale * columns.view(-1, len(old_out), taps).transpose(0, 1)
            matrix[old_out[:, None], new_in] = columns.to(weight.dtype)
        if len(new_out) and len(new_in):
            matrix[new_out[:, None], new_in] = he(gap, len(new_out), len(new_in), taps).to(weight.dtype)
    return like(gap.tensor(weight), gap.old)


def orthogonal_rows(gap: Gap, old: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows orthogonal to the rows of `old` and to each other, of their mean norm.

    Random vectors are projected off the row space (QR, twice for accuracy) and orthonormalised: the paper's
    null space without its full SVD.

    Args:
        old: (n, m) matrix; the null space of its rows has at least m - n dimensions.
        count: rows to make; those beyond the room there is are He-normal at the same norm.
    """
    old = old.to(torch.promote_types(old.dtype, torch.float32))
    length = old.shape[1]
    norm = old.norm(dim=1).mean()
    room = min(count, max(0, length - old.shape[0]))
    parts = []
    if room:
        basis = torch.linalg.qr(old.t()).Q
        vectors = gap.randn(length, room)
        for _ in range(2):
            vectors = vectors - basis @ (basis.mH @ vectors)
        parts.append(torch.linalg.qr(vectors).Q.t() * norm)
    if count > room:
        rest = gap.randn(count - room, length)
        parts.append(rest / rest.norm(dim=1, keepdim=True) * norm)
    return torch.cat(parts)

"""Filters that a smaller first network would begin with empty, begun anew.

An identity initialisation (`dirac_`, `eye_`) has one entry in each filter, and others have few. A filter whose entries
were all for channels that the first network lacks would be zero, and what divides by its size (batch norm, weight
normalisation and standardisation) would make gradients of 1e8, or NaN, of it: nobody would train such a network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ..dense.fake import tensor_named
from ..dense.network import Network
from ..dense.whole import overwrite
from ..machine.ranks import spread
from ..morph.averages import averaged

EMPTY = 1e-2
"""A filter that has kept no larger share of its norm is empty; of random entries even 1 / 64 keep an eighth."""


def filter_norms(network: Network) -> dict[str, torch.Tensor]:
    """The norm of every filter (output channel) of each weight of the dense network, by the weight's name."""
    return {
        name: _norms(tensor_named(network.model, name), axis)
        for name, layout in network.structure.tensors.items()
        if (axis := layout.role.filters) is not None
    }


@torch.no_grad()
def revive(network: Network, dense: Mapping[str, torch.Tensor], copies: Iterable[nn.Module] = ()) -> None:
    """Give filters that the narrowing has emptied a random direction, at the norm they had; a warning names them.

    What was zero in the dense network (a residual branch that begins silent) stays zero, and frozen filters stay as
    they are.

    Args:
        network: right after it was narrowed from the dense one.
        dense: what `filter_norms` said before.
        copies: averages of the model, at its size, which get the same.
    """
    alive, filled, frozen = network.structure.alive_mask(network.current), list[str](), list[str]()
    for name, layout in network.structure.present(network.current).items():
        axis = layout.role.filters
        if axis is None or name not in dense:
            continue
        weight = tensor_named(network.model, name)
        units, was = layout.axes[axis], dense[name]
        was = was if units is None else was[alive[units].to(was.device)]
        empty = (_norms(weight, axis) <= EMPTY * was) & (was > 0)
        if not empty.any():
            continue
        what = f"{name.rpartition('.')[0] or name} ({int(empty.sum())} of {len(empty)})"
        (filled if weight.requires_grad else frozen).append(what)
        if weight.requires_grad:
            fresh = torch.randn_like(weight, dtype=was.dtype)
            by_filter = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
            fresh *= (was / _norms(fresh, axis)).view(by_filter)
            overwrite(weight, torch.where(empty.view(by_filter), fresh.to(weight.dtype), weight))
            spread([weight])
            for copy in copies:
                overwrite(tensor_named(averaged(copy, network.model), name), weight)
    if filled:
        _tell(filled, "They begin anew at random, at the norm they had; exclude=[...] leaves whole what must not")
    if frozen:
        _tell(frozen, "They are frozen and stay empty; leave their modules whole with exclude=[...]")


def _norms(weight: torch.Tensor, axis: int) -> torch.Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.linalg.vector_norm(weight.detach(), dim=[d for d in range(weight.ndim) if d != axis], dtype=dtype)


def _tell(modules: list[str], then: str) -> None:
    warnings.warn(
        f"filters read nothing but channels that the first network lacks, as an identity initialisation has them: "
        f"{', '.join(modules)}. {then}",
        stacklevel=7,
    )

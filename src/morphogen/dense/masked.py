"""What a narrower network must compute, where layers normalise each channel by itself."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import MorphError
from .double import double
from .fake import tensor_named
from .network import Network
from .subnet import SubNetwork


def masked_dense(network: Network, target: SubNetwork) -> nn.Module:
    """A copy of the dense model with every weight that a sub-network drops set to zero.

    Morphed to `target`, a model whose normalisation works on each channel by itself (batch norm, or none) computes
    what this copy computes: a proof of the rules by which it was traced. With layer or group norm it does not, because
    their statistics go over channels.

    Args:
        network: what `trace` returned, at its full size.
        target: a sub-network of it, of the same depth and resolution.

    Raises:
        MorphError: the network is not at its full size.
    """
    if network.current != network.dense:
        raise MorphError(
            "a copy of the dense network needs the dense network",
            expected="masked_dense before the morph",
            found="a network that has been morphed",
        )
    model = double(network.model, _copy, hooks=True)
    alive = network.structure.alive_mask(target)
    with torch.no_grad():
        for name, layout in network.structure.tensors.items():
            if layout.role.kind == "variance":
                continue
            for dim, axis in enumerate(layout.axes):
                if axis is not None:
                    tensor = tensor_named(model, name)
                    tensor.index_fill_(dim, (~alive[axis]).nonzero().flatten().to(tensor.device), 0.0)
    return model


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    data = tensor.detach().clone()
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data

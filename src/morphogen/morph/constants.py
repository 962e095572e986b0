"""What does not learn: at any sub-network it is a part of what it was when the model was traced."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from .resample import Regrid, resample


def constant_at(
    network: Network, name: str, target: SubNetwork, like: torch.Tensor, shape: Sequence[int]
) -> torch.Tensor | None:
    """The value of a frozen parameter, or of a table of the model's, in a sub-network.

    It is interpolated from the dense network's each time, so that it comes back as it was.

    Args:
        name: of the tensor.
        target: the sub-network.
        like: the tensor, for its kind.
        shape: that it has there.

    Returns:
        None where it learns.
    """
    whole, dense = network.restored(name, target, like), network.dense.resolution
    if whole is None or tuple(whole.shape) == tuple(shape):
        return whole
    if dense is None or target.resolution is None:
        return None
    return resample(whole, tuple(shape), Regrid(dense, target.resolution), name=name)

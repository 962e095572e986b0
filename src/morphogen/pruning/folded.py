"""Weights with the batch norm behind them folded in, as for inference: what a channel really weighs.

Behind a batch norm a filter's own size means nothing: twice the filter has twice the deviation. What counts is
gamma / sigma times the filter, gamma the norm's scale and sigma its running deviation.
"""

from __future__ import annotations

import torch

from ..dense.fake import tensor_named
from ..dense.network import Network
from .alike import wide


def scale_and_variance(network: Network, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The learned scale, and the running variance with its epsilon, of the batch norm behind a weight; (out,) each.

    None where there is none, or where its scale is not trained.
    """
    norm = network.structure.norms.get(name)
    if norm is None:
        return None
    scale = tensor_named(network.model, norm.scale)
    return (scale, wide(tensor_named(network.model, norm.variance)) + norm.eps) if scale.requires_grad else None


def folded_weight(network: Network, name: str) -> torch.Tensor:
    """A weight times gamma / sigma of the batch norm behind it, without a gradient; as it is where there is none."""
    weight, norm = tensor_named(network.model, name).detach(), scale_and_variance(network, name)
    if norm is None:
        return weight
    factor = wide(norm[0].detach()) * norm[1].rsqrt()
    return weight * factor.view(-1, *[1] * (weight.ndim - 1))

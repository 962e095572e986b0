"""Weights with the batch norm behind them folded in, as for inference: what a channel really weighs.

Behind a batch norm a filter's own size means nothing: twice the filter has twice the deviation. What counts is
gamma / sigma times the filter, gamma the norm's scale and sigma its running deviation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..dense.fake import tensor_named
from ..dense.network import Network
from ..dense.subnet import FIXED
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


def same_channels(network: Network, names: Sequence[str]) -> torch.Tensor | None:
    """Which of the batch norms behind these weights write the same channel group: an (N, N) matrix of zeros and ones.

    None without any. A product with it adds up in the same order every time, unlike what is scattered on a GPU.
    """
    if not names:
        return None
    groups = network.structure.unit_groups()
    layouts = [network.structure.tensors[name] for name in names]
    units = [None if layout.role.filters is None else layout.axes[layout.role.filters] for layout in layouts]
    group = [-1 - i if each is None else int(groups[each[each != FIXED][0]]) for i, each in enumerate(units)]
    own = torch.tensor(group, device="cpu")
    device = tensor_named(network.model, names[0]).device
    return (own[:, None] == own[None, :]).float().to(device)


def sums_over(
    shared: torch.Tensor | None, ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]
) -> torch.Tensor:
    """For each of N scales the sum of the products of two lists, over all scales that write the same channel group."""
    if shared is None:
        return torch.empty(0)
    products = torch.stack([torch.dot(wide(one), wide(other)) for one, other in zip(ones, others, strict=True)])
    return shared.to(products.dtype) @ products

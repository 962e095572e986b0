"""How sparse the layers of a network are: largest weights by channel, and what is left of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from ..dense.fake import tensor_named
from ..dense.network import Network
from ..dense.subnet import FIXED, TensorLayout
from ..errors import ConfigError
from ..pruning.axes import channel_axes
from .ledger import LayerDensity

MAPPED = 3
"""Layers that are mapped unless others are asked for, as in PruneTrain's Figure 4."""


def mapped_layers(network: Network, paths: Sequence[str] = ()) -> tuple[str, ...]:
    """The weights of the layers whose channels are to be mapped over the epochs.

    Args:
        network: any.
        paths: of the layers, such as `layer1.0.conv1`; by default up to three consecutive ones in the middle of the
            model, of one residual path where a block stack has any.

    Raises:
        ConfigError: a path that is no layer whose output channels can change.
    """
    known = [name for name, layout in _layers(network).items() if _filters(layout) is not None]
    if paths:
        named = {path: next((name for name in (path, f"{path}.weight") if name in known), None) for path in paths}
        for path, name in named.items():
            if name is None:
                raise ConfigError(
                    "no layer whose output channels can change",
                    where=f"sparsity_map, {path}",
                    expected=f"such as {', '.join(map(layer_of, known[:3]))}",
                    todo="`morphogen inspect` says what is pinned and why",
                )
        return tuple(name for name in named.values() if name is not None)
    branches = [
        [name for name in known if name in branch]
        for stack in network.stacks
        for unit in stack.bottlenecks
        for branch in unit
        if not branch.isdisjoint(known)
    ]
    path = branches[len(branches) // 2] if branches else known
    first = max(0, (len(path) - MAPPED) // 2)
    return tuple(path[first : first + MAPPED])


def output_maxima(network: Network, names: Sequence[str]) -> dict[str, list[float]]:
    """The largest absolute weight of every output channel of the dense layers, by layer; 0 where it is out.

    Args:
        network: at any sub-network.
        names: of weights, from `mapped_layers`.

    Returns:
        For each layer one figure a channel of the dense network, to three digits.
    """
    axes = channel_axes(network)
    found = {}
    for name in names:
        layout = network.structure.tensors[name]
        units = _filters(layout)
        assert units is not None  # `mapped_layers` gives no others
        units = units[units != FIXED].unique()
        row = torch.zeros(len(units), device="cpu")
        for axis in axes.get(name, ()):
            if axis.dim == layout.role.filters:
                maxima = axis.maxima(tensor_named(network.model, name).detach())
                row[torch.searchsorted(units, axis.units)] = maxima.float().cpu()
        found[layer_of(name)] = [float(f"{figure:.3g}") for figure in row.tolist()]
    return found


def densities(network: Network, threshold: float) -> list[LayerDensity]:
    """What is left of each layer of the dense network (PruneTrain, Figure 12), in the model's order.

    Args:
        network: at any sub-network.
        threshold: weights below it count as gone.
    """
    present = network.structure.present(network.current)
    found = []
    for name, layout in _layers(network).items():
        dense, channels, weights = prod(layout.shape), 0, 0
        if name in present:
            weight = tensor_named(network.model, name).detach()
            channels, weights = weight.numel(), int((weight.abs() >= threshold).sum())
        found.append(LayerDensity(layer_of(name), channels / dense, weights / dense))
    return found


def layer_of(name: str) -> str:
    """The layer of a weight, as a user calls it."""
    return name.removesuffix(".weight")


def _filters(layout: TensorLayout) -> torch.Tensor | None:
    """The units of a weight's filters; None where they cannot change, or have several axes."""
    axis = layout.role.filters
    return None if axis is None else layout.axes[axis]


def _layers(network: Network) -> dict[str, TensorLayout]:
    """The weights of all layers of the dense network."""
    return {name: layout for name, layout in network.structure.tensors.items() if layout.role.kind == "weight"}

"""How alike the feature maps of a layer are right after it has grown (Network Expansion, section 4.4, Figure 6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..dense.network import Network
from ..dense.subnet import FIXED, SubNetwork

THIRD = 2
"""The paper looks at the third convolution."""

MOST = 64
"""Channels of a matrix; of a wider layer the first old and the first new ones."""


def widened_layer(network: Network, before: SubNetwork) -> str | None:
    """The layer that is looked at: the third convolution whose output channels have grown, or the last before it.

    Args:
        network: after the change.
        before: the sub-network before it.

    Returns:
        The path of its module; None where no convolution has grown.
    """
    grown = [
        path for path in _convolutions(network) if (found := _new(network, before, path)).any() and not found.all()
    ]
    return grown[min(THIRD, len(grown) - 1)] if grown else None


class FeatureMaps:
    """What a layer makes of the first image that goes through the model meanwhile: no pass of its own is needed.

    Use as a context around an evaluation, `with FeatureMaps(network, model, before) as maps`.

    Args:
        network: after a change.
        model: the network's, or its moving average.
        before: the sub-network before the change.
    """

    def __init__(self, network: Network, model: nn.Module, before: SubNetwork):
        self._layer, self._model = widened_layer(network, before), model
        self._new = None if self._layer is None else _new(network, before, self._layer)
        self._maps: Tensor | None = None

    def __enter__(self) -> FeatureMaps:
        if self._layer is not None:
            self._handle = self._model.get_submodule(self._layer).register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        if self._layer is not None:
            self._handle.remove()

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        if self._maps is None:
            self._maps = output[0].detach().flatten(1).float().cpu()

    def correlations(self) -> dict[str, Any] | None:
        """Pearson's correlation for every pair of the layer's output channels.

        Returns:
            `layer`, its path; `new`, whether each channel is new; `matrix`, (channels, channels) to three digits, 0
            where a map is constant. At most MOST channels. None where no convolution has grown.
        """
        if self._maps is None or self._new is None:
            return None
        chosen = _chosen(self._new)
        maps = self._maps[chosen]
        maps = maps - maps.mean(1, keepdim=True)
        norms = maps.norm(dim=1, keepdim=True)
        maps = torch.where(norms > 0, maps / norms.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
        matrix = [[round(value, 3) for value in row] for row in (maps @ maps.T).tolist()]
        return {"layer": self._layer, "new": self._new[chosen].tolist(), "matrix": matrix}


def _convolutions(network: Network) -> list[str]:
    """Paths of the convolutions of the present network whose output channels can change."""
    present = network.structure.present(network.current)
    return [
        name.removesuffix(".weight")
        for name, layout in present.items()
        if name.endswith(".weight")
        and layout.role.filters is not None
        and layout.axes[layout.role.filters] is not None
        and isinstance(network.model.get_submodule(name.removesuffix(".weight")), (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    ]


def _new(network: Network, before: SubNetwork, path: str) -> Tensor:
    """For each output channel of a layer, whether it was not alive before."""
    layout = network.structure.tensors[f"{path}.weight"]
    assert layout.role.filters is not None
    units = layout.axes[layout.role.filters]
    assert units is not None  # `_convolutions` gives no others
    now, was = (network.structure.alive_mask(each)[units] for each in (network.current, before))
    return (~was & (units != FIXED))[now]


def _chosen(new: Tensor) -> Tensor:
    """The positions of at most MOST channels, old ones first among equals, in their order."""
    if len(new) <= MOST:
        return torch.arange(len(new))
    old, fresh = (~new).nonzero().flatten(), new.nonzero().flatten()
    half = MOST // 2
    fresh = fresh[: max(half, MOST - len(old))]
    return torch.cat([old[: MOST - len(fresh)], fresh]).sort().values

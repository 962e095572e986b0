"""Channel gating (PruneTrain, section 4.2, Figure 5b): what channel union is compared with.

After channel union a layer still computes on channels that are sparse for it alone, because another layer of their
group needs them. Gated, it computes on its dense channels only, between a channel select and a channel scatter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from morphogen.dense.network import Network
from morphogen.morph.tensors import like
from morphogen.pruning.axes import channel_axes

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
"""What can be gated: layers of just these types, without groups."""


class Gated(nn.Module):
    """A layer that reads and writes all channels and computes on some.

    Attributes:
        layer: the layer with its dense slices alone; without a bias where `outputs` are scattered.
        bias: of all outputs; None where the layer has none, or keeps it.
        inputs, outputs: the dense channels among all (int64), None where all are.
    """

    inputs: torch.Tensor | None
    outputs: torch.Tensor | None
    bias: nn.Parameter | None

    def __init__(self, layer: Layer, outputs: torch.Tensor, inputs: torch.Tensor):
        """
        Args:
            layer: becomes the inner one.
            outputs, inputs: whether each channel is dense, boolean. Where none is, the first one computes, with zeros.
        """
        super().__init__()
        self._size = len(outputs)
        self._channel = 1 - layer.weight.ndim  # the axis of channels, from behind: -1 for a linear layer, -3 for images
        self.register_buffer("outputs", _positions(outputs), persistent=False)
        self.register_buffer("inputs", _positions(inputs), persistent=False)
        weight = layer.weight.detach()
        for dim, chosen in enumerate((self.outputs, self.inputs)):
            if chosen is not None:
                weight = weight.index_select(dim, chosen)
        if not (outputs.any() and inputs.any()):
            weight.zero_()
        layer.weight = nn.Parameter(like(weight, layer.weight), requires_grad=layer.weight.requires_grad)
        if isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = weight.shape
        else:
            layer.out_channels, layer.in_channels = weight.shape[:2]
        self.register_parameter("bias", None)
        if self.outputs is not None:
            self.bias = cast(nn.Parameter | None, layer.bias)
            layer.register_parameter("bias", None)
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, all inputs, ...) to (N, all outputs, ...), or (..., inputs) to (..., outputs), as the layer itself."""
        inputs, outputs = self.inputs, self.outputs
        if inputs is not None:
            x = _along(self._channel, x, lambda t, dim: t.index_select(dim, inputs))
        x = self.layer(x)
        if outputs is not None:
            x = _along(self._channel, x, lambda t, dim: _scattered(t, dim, outputs, self._size))
        return x if self.bias is None else x + self.bias.view(-1, *[1] * (-1 - self._channel))


def gated(network: Network, threshold: float = 1e-4) -> nn.Module:
    """A copy of the present network in which every layer computes on its own dense channels only.

    Its function is that of the present network with the sparse slices of these layers set to zero, in training and
    in evaluation mode; so are the gradients of what both have. For that the scatter comes right behind the layer and
    before the normalisation, which makes of zeros what it makes of a sparse channel: its shift. Figure 5b gates a
    residual branch as a whole, select before its first layer and scatter behind its last; inside the branch it leaves
    the union of what two neighbours need. Gates around every single layer spare at least as many FLOPs; at the two
    ends of a branch they are the same, and inside it there are none where neighbours agree.

    For comparison alone: the copy's weights are new parameters, which no optimizer knows.

    Args:
        network: at the sub-network in question; nothing is changed.
        threshold: a channel of a layer is sparse where no weight's absolute value is as large.

    Returns:
        The copy, with a `Gated` in the place of every convolution and linear layer that has sparse channels.
        Convolutions with groups, transposed ones and subclasses stay as they are.
    """
    model = copy.deepcopy(network.model)
    for name, axes in channel_axes(network).items():
        path, _, leaf = name.rpartition(".")
        layer: Any = model.get_submodule(path)
        if type(layer) not in Layer.__args__ or leaf != "weight" or getattr(layer, "groups", 1) != 1:
            continue
        weight = layer.weight.detach()
        dense = [torch.ones(size, dtype=torch.bool, device=weight.device) for size in weight.shape[:2]]
        for axis in axes:
            sparse = axis.maxima(weight) < threshold  # NaN is not
            dense[axis.dim] = axis.spread(~sparse, True, weight.ndim).flatten()
        if not all(each.all() for each in dense):
            model.set_submodule(path, Gated(layer, *dense))
    return model


def _positions(dense: torch.Tensor) -> torch.Tensor | None:
    """Where a mask is true; the first position where it is nowhere, None where it is everywhere."""
    if dense.all():
        return None
    return dense.nonzero().flatten() if dense.any() else torch.zeros(1, dtype=torch.long, device=dense.device)


def _along(channel: int, x: torch.Tensor, act: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
    """Act on the axis of channels, in rows of channels where memory has them so.

    On tensors in the channels-last format PyTorch's index functions give up the format, and are ten times slower.
    """
    rows = x.movedim(channel, -1)
    if not rows.is_contiguous():
        return act(x, channel)
    return act(rows.reshape(-1, rows.shape[-1]), 1).view(*rows.shape[:-1], -1).movedim(-1, channel)


def _scattered(x: torch.Tensor, dim: int, outputs: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros, with the channels of `x` at `outputs`."""
    shape = list(x.shape)
    shape[dim] = size
    return x.new_zeros(shape).index_add_(dim, outputs, x)

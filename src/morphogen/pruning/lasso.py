"""The group lasso over input and output channels (PruneTrain, section 4.1, equation 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..fake import tensor_named
from ..network import Network
from .axes import ChannelAxis, channel_axes

Axes = Mapping[str, tuple[ChannelAxis, ...]]


@dataclass(frozen=True)
class Step:
    """How far a proximal step shrinks the channels of a weight.

    Attributes:
        length: by how much a channel's norm becomes smaller.
        scale: what an adaptive optimizer divides the steps of each entry by; a channel's step is divided by the mean.
    """

    length: float
    scale: torch.Tensor | None = None


class GroupLasso:
    """The sum of the l2 norms of all input channels and all output channels of all layers of a sub-network.

    Channels that no morph can take out (the image's, the classes', excluded modules) are not among them, nor are
    weights that are not trained. To be made anew after every morph.

    Attributes:
        axes: the channels, by the name of the weight.
        weights: the parameters, by name.
    """

    def __init__(self, network: Network):
        trained = {name for name, parameter in network.model.named_parameters() if parameter.requires_grad}
        self.axes = {name: axes for name, axes in channel_axes(network).items() if name in trained}
        self.weights = {name: tensor_named(network.model, name) for name in self.axes}

    def __call__(self) -> torch.Tensor:
        """The penalty, a scalar in float32 (float64 where the weights are), without a coefficient.

        Its gradient is that of the closed form: a weight divided by the norm of its output channel, plus the same by
        that of its input channel; zero in a channel of zeros.
        """
        return _Penalty.apply(self.axes, *self.weights.values())  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def shrink(self, steps: Mapping[str, Step]) -> None:
        """One proximal step, in place: every channel's norm becomes smaller by a step, or exactly 0.

        A weight is in an output and in an input channel, and the proximal map of the two together has no closed form;
        that of the output channels comes first, then that of the input channels.

        Args:
            steps: for each weight by name how far.
        """
        for name, axes in self.axes.items():
            weight, step = self.weights[name], steps[name]
            for axis in axes:
                length = step.length if step.scale is None else step.length / _means(step.scale, axis)
                kept = (1 - length / _norms(weight, axis)).clamp_(min=0)  # of an empty channel: 1 - inf, or 1 - 0 / 0
                weight.mul_(axis.spread(kept.nan_to_num_(1.0), 1.0, weight.ndim).to(weight.dtype))


def wide(weight: torch.Tensor) -> torch.Tensor:
    """A weight in at least float32, in which its squares can be added up."""
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()


def _sums(entries: torch.Tensor, dim: int) -> torch.Tensor:
    """Sums over all axes but one, the first axis first: the order in which memory is read in any memory format."""
    if dim == 0:
        return entries.flatten(1).sum(1) if entries.is_contiguous() else entries.sum(tuple(range(1, entries.ndim)))
    entries = entries.sum(0)
    others = tuple(d for d in range(entries.ndim) if d != dim - 1)
    return entries.sum(others) if others else entries


def _norms(weight: torch.Tensor, axis: ChannelAxis) -> torch.Tensor:
    """The l2 norm of each channel of an axis."""
    return axis.laid_out(_sums(wide(weight).square(), axis.dim)).sum(1).sqrt_()


def _means(entries: torch.Tensor, axis: ChannelAxis) -> torch.Tensor:
    """Mean over each channel of an axis."""
    count = torch.full((entries.shape[axis.dim],), entries.numel() / entries.shape[axis.dim], device=entries.device)
    return axis.laid_out(_sums(entries, axis.dim)).sum(1) / axis.laid_out(count).sum(1)


class _Penalty(torch.autograd.Function):
    """Norms forward; backward in closed form, so that one pass over each weight makes its whole gradient."""

    @staticmethod
    def forward(ctx: Any, axes: Axes, *weights: torch.Tensor) -> torch.Tensor:
        norms: list[torch.Tensor] = []
        for weight, of_weight in zip(weights, axes.values(), strict=True):
            squares = wide(weight).square()
            norms += [axis.laid_out(_sums(squares, axis.dim)).sum(1) for axis in of_weight]
        lengths = torch.cat(norms).sqrt_()
        ctx.axes, ctx.sizes = axes, [len(each) for each in norms]
        ctx.save_for_backward(lengths, *weights)
        return lengths.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        lengths, *weights = ctx.saved_tensors
        factors = iter(torch.where(lengths > 0, grad_outputs[0] / lengths, 0).split(ctx.sizes))
        gradients = []
        for weight, of_weight in zip(weights, ctx.axes.values(), strict=True):
            factor = sum(axis.spread(next(factors), 0.0, weight.ndim) for axis in of_weight)
            gradients.append((wide(weight) * factor).to(weight.dtype))
        return None, *gradients

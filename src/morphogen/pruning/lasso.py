"""The group lasso over input and output channels (PruneTrain, section 4.1, equation 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..dense.fake import tensor_named
from ..dense.network import Network
from .alike import Alike, alike, stacked, wide
from .axes import ChannelAxis, channel_axes


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
    weights that are not trained. It follows the network from morph to morph.

    Attributes:
        network: whose present sub-network is meant.
        axes: its channels, by the name of the weight.
        weights: the parameters, by name.
    """

    def __init__(self, network: Network):
        self.network = network
        self._read()

    def _read(self) -> None:
        """Find the channels of the present sub-network."""
        network, self._of = self.network, self.network.current
        trained = {name for name, parameter in network.model.named_parameters() if parameter.requires_grad}
        self.axes = {name: axes for name, axes in channel_axes(network).items() if name in trained}
        self.weights = {name: tensor_named(network.model, name) for name in self.axes}
        self._kinds = alike(self.weights, self.axes)

    def follow(self) -> None:
        """Be that of the present sub-network, where the network has morphed."""
        if self.network.current is not self._of:
            self._read()

    def __call__(self) -> torch.Tensor:
        """The penalty, a scalar in float32 (float64 where the weights are), without a coefficient.

        Its gradient is that of the closed form: a weight divided by the norm of its output channel, plus the same by
        that of its input channel; zero in a channel of zeros.
        """
        self.follow()
        weights = [self.weights[name] for kind in self._kinds for name in kind.names]
        return _Penalty.apply(self._kinds, *weights)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def shrink(self, steps: Mapping[str, Step]) -> None:
        """One proximal step, in place: every channel's norm becomes smaller by a step, or exactly 0.

        A weight is in an output and in an input channel, and the proximal map of the two together has no closed form;
        that of the output channels comes first, then that of the input channels.

        Args:
            steps: for each weight by name how far.
        """
        self.follow()
        for kind in self._kinds:
            weights = [self.weights[name] for name in kind.names]
            values = stacked(weights)
            for axis in kind.axes:
                norms = kind.sums(values.square(), axis).sqrt_()
                lengths = _lengths([steps[name] for name in kind.names], weights, kind, axis)
                kept = (1 - lengths / norms).clamp_(min=0)  # of an empty channel: 1 - inf, or 1 - 0 / 0
                values = values * kind.spread(kept.nan_to_num_(1.0), axis, 1.0, weights[0].ndim)
            torch._foreach_copy_(weights, list(values.unbind()))


def _lengths(steps: list[Step], weights: list[torch.Tensor], kind: Alike, axis: ChannelAxis) -> float | torch.Tensor:
    """By how much the channels of weights that are alike shrink: one figure, (N, 1) or (N, channels)."""
    first = steps[0].length
    if all(step.length == first for step in steps):
        lengths = first
    else:
        lengths = torch.tensor([[step.length] for step in steps], device=weights[0].device)
    if all(step.scale is None for step in steps):
        return lengths
    scales = [
        torch.ones_like(weight) if step.scale is None else step.scale
        for step, weight in zip(steps, weights, strict=True)
    ]
    return lengths / kind.means(stacked(scales), axis)


class _Penalty(torch.autograd.Function):
    """Norms forward; backward in closed form, so that one pass over each weight makes its whole gradient."""

    @staticmethod
    def forward(ctx: Any, kinds: list[Alike], *weights: torch.Tensor) -> torch.Tensor:
        norms, rest = [], iter(weights)
        for kind in kinds:
            squares = stacked([next(rest) for _ in kind.names]).square()
            norms += [kind.sums(squares, axis).flatten() for axis in kind.axes]
        lengths = torch.cat(norms).sqrt_()
        ctx.kinds, ctx.sizes = kinds, [len(each) for each in norms]
        ctx.save_for_backward(lengths, *weights)
        return lengths.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        lengths, *weights = ctx.saved_tensors
        factors = iter(torch.where(lengths > 0, grad_outputs[0] / lengths, 0).split(ctx.sizes))
        gradients, rest = [], iter(weights)
        for kind in ctx.kinds:
            alike_weights = [next(rest) for _ in kind.names]
            ndim = alike_weights[0].ndim
            each = [kind.spread(next(factors).view(len(kind.names), -1), axis, 0.0, ndim) for axis in kind.axes]
            factor = each[0] if len(each) == 1 else each[0] + each[1]
            products = torch._foreach_mul([wide(weight) for weight in alike_weights], list(factor.unbind()))
            gradients += [product.to(weight.dtype) for product, weight in zip(products, alike_weights, strict=True)]
        return None, *gradients

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
from .folded import same_channels, scale_and_variance, sums_over


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
        folded: take the norms of weights with the batch norm behind them folded in, see `_Penalty`.
        axes: its channels, by the name of the weight.
        weights: the parameters, by name.
        scales: of the batch norms that are folded in, by the name of the weight.
    """

    def __init__(self, network: Network, *, folded: bool = False):
        self.network, self.folded = network, folded
        self._read()

    def _read(self) -> None:
        """Find the channels of the present sub-network."""
        network, self._of = self.network, self.network.current
        trained = {name for name, parameter in network.model.named_parameters() if parameter.requires_grad}
        self.axes = {name: axes for name, axes in channel_axes(network).items() if name in trained}
        self.weights = {name: tensor_named(network.model, name) for name in self.axes}
        norms = {name: scale_and_variance(network, name) for name in self.axes if self.folded}
        self.scales = {name: norm[0] for name, norm in norms.items() if norm is not None}
        self._kinds = alike(self.weights, self.axes, self.scales)
        names = [name for kind in self._kinds for name in kind.names if name in self.scales]
        self._shared = same_channels(network, names)

    def follow(self) -> None:
        """Be that of the present sub-network, where the network has morphed."""
        if self.network.current is not self._of:
            self._read()

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """All parameters that the penalty moves, by name."""
        return self.weights | {self.network.structure.norms[name].scale: scale for name, scale in self.scales.items()}

    def _variances(self, kind: Alike) -> torch.Tensor | None:
        """The running variances of the batch norms behind weights that are alike, (N, out)."""
        if kind.names[0] not in self.scales:
            return None
        norms = [scale_and_variance(self.network, name) for name in kind.names]
        return torch.stack([norm[1] for norm in norms if norm is not None])

    def __call__(self) -> torch.Tensor:
        """The penalty, a scalar in float32 (float64 where the weights are), without a coefficient.

        Its gradient is that of the closed form: a weight divided by the norm of its output channel, plus the same by
        that of its input channel; zero in a channel of zeros.
        """
        self.follow()
        names = [name for kind in self._kinds for name in kind.names]
        scales = [self.scales[name] for name in names if name in self.scales]
        variances = [self._variances(kind) for kind in self._kinds]
        weights = [self.weights[name] for name in names]
        return _Penalty.apply(self._kinds, variances, self._shared, *weights, *scales)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def shrink(self, steps: Mapping[str, Step]) -> None:
        """One proximal step, in place: every channel's norm becomes smaller by a step, or exactly 0.

        A weight is in an output and in an input channel, and the proximal map of the two together has no closed form;
        that of the output channels comes first, then that of the input channels.

        Args:
            steps: for each parameter of `trained` by name how far.
        """
        self.follow()
        scales = [self.scales[name] for kind in self._kinds for name in kind.names if name in self.scales]
        before = sums_over(self._shared, scales, scales)
        for kind in self._kinds:
            weights = [self.weights[name] for name in kind.names]
            variance = self._variances(kind)
            if variance is not None:
                self._shrink_folded(kind, weights, variance, steps)
                continue
            values = stacked(weights)
            for axis in kind.axes:
                norms = kind.sums(values.square(), axis).sqrt_()
                lengths = _lengths([steps[name] for name in kind.names], weights, kind, axis)
                kept = (1 - lengths / norms).clamp_(min=0)  # of an empty channel: 1 - inf, or 1 - 0 / 0
                values = values * kind.spread(kept.nan_to_num_(1.0), axis, 1.0, weights[0].ndim)
            torch._foreach_copy_(weights, list(values.unbind()))
        if scales:
            grown = (before / sums_over(self._shared, scales, scales)).sqrt_().nan_to_num_(1.0, posinf=1.0)
            torch._foreach_mul_(scales, list(grown.to(scales[0].dtype).unbind()))

    def _shrink_folded(
        self, kind: Alike, weights: list[torch.Tensor], variance: torch.Tensor, steps: Mapping[str, Step]
    ) -> None:
        """The same of weights with a batch norm folded in: output channels by their scales, input channels by weights.

        A norm moves by as much as it would by the gradient: `rates` times the step. Filters keep their size.
        """
        scales, values = [self.scales[name] for name in kind.names], stacked(weights)
        names = [self.network.structure.norms[name].scale for name in kind.names]
        squares, gammas = _by_input(values.square()), stacked(scales)
        for axis in kind.axes:
            gains = gammas.square() / variance
            effective, output = squares * gains[:, :, None], axis.dim == 0
            rates = squares.sum(2) / variance if output else gains
            moved, own = (scales, names) if output else (weights, kind.names)
            lengths = _lengths([steps[name] for name in own], moved, kind, axis)
            norms = kind.sums(effective, axis)
            kept = 1 - lengths * kind.sums(effective * rates[:, :, None], axis) / (norms * norms.sqrt())
            kept = kept.clamp_(min=0).nan_to_num_(1.0)
            if output:
                gammas = gammas * kind.spread(kept, axis, 1.0, 1)
            else:
                values = values * kind.spread(kept, axis, 1.0, weights[0].ndim)
                size = squares.sum(2) / (squares * kind.spread(kept, axis, 1.0, 2).square()).sum(2)
                size = size.sqrt_().nan_to_num_(1.0, posinf=1.0)
                values = values * size.view(*size.shape, *[1] * (values.ndim - 2))
        torch._foreach_copy_(scales, list(gammas.unbind()))
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


def _by_input(stacked: torch.Tensor) -> torch.Tensor:
    """Sums over the taps of N stacked weights: (N, out, in)."""
    return stacked.flatten(3).sum(3) if stacked.ndim > 3 else stacked


class _Penalty(torch.autograd.Function):
    """Norms forward; backward in closed form, so that one pass over each weight makes its whole gradient.

    With a batch norm folded in, the norms are those of gamma / sigma times the weight. Sigma is taken to follow the
    size of each filter, as it does: the gradient of the filter has no part along the filter itself, which would shrink
    it for nothing, and an output channel's norm pulls at gamma alone. The same holds one layer on: all scales that
    write a channel group, made smaller together, are made up for by the batch norms behind it. So their gradient has no
    part along them all: the penalty chooses between channels, and shrinks no layer as a whole.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kinds: list[Alike],
        variances: list[torch.Tensor | None],
        shared: torch.Tensor | None,
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        norms, folded, rest = [], list[torch.Tensor](), iter(tensors)
        weights = [[next(rest) for _ in kind.names] for kind in kinds]
        for kind, own, variance in zip(kinds, weights, variances, strict=True):
            squares = stacked(own).square()
            if variance is not None:
                squares = _by_input(squares)
                gains = stacked([next(rest) for _ in kind.names]).square() / variance
                folded += [squares, gains, variance]
                squares = squares * gains[:, :, None]
            norms += [kind.sums(squares, axis).flatten() for axis in kind.axes]
        lengths = torch.cat(norms).sqrt_()
        ctx.shared = shared
        ctx.kinds, ctx.sizes, ctx.count = kinds, [len(each) for each in norms], len(tensors)
        ctx.folds = [variance is not None for variance in variances]
        ctx.save_for_backward(lengths, *tensors, *folded)
        return lengths.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        lengths, *saved = ctx.saved_tensors
        factors = iter(torch.where(lengths > 0, grad_outputs[0] / lengths, 0).split(ctx.sizes))
        rest, folded = iter(saved[: ctx.count]), iter(saved[ctx.count :])
        weights = [[next(rest) for _ in kind.names] for kind in ctx.kinds]
        of_weights, of_scales, scales = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
        for kind, own, folds in zip(ctx.kinds, weights, ctx.folds, strict=True):
            ndim = own[0].ndim
            each = [
                kind.spread(next(factors).view(len(own), -1), axis, 0.0, 2 if folds else ndim) for axis in kind.axes
            ]
            factor = each[0] if len(each) == 1 else each[0] + each[1]
            if folds:
                squares, gains, variance = next(folded), next(folded), next(folded)
                pulls, sizes = (squares * factor).sum(2), squares.sum(2)
                along = torch.where(sizes > 0, pulls / sizes, 0)
                factor = (factor - along[:, :, None]) * gains[:, :, None]
                factor = factor.view(*factor.shape, *[1] * (ndim - 2))
                mine = [next(rest) for _ in own]
                of_scales += _products(mine, pulls / variance)
                scales += mine
            of_weights += _products(own, factor)
        if scales:
            along = sums_over(ctx.shared, scales, of_scales) / sums_over(ctx.shared, scales, scales)
            common = torch._foreach_mul(scales, list(along.nan_to_num_(0.0).to(scales[0].dtype).unbind()))
            torch._foreach_sub_(of_scales, common)
        return None, None, None, *of_weights, *of_scales


def _products(tensors: list[torch.Tensor], factors: torch.Tensor) -> list[torch.Tensor]:
    """Each tensor times its own of N factors, in the tensor's dtype."""
    products = torch._foreach_mul([wide(tensor) for tensor in tensors], list(factors.unbind()))
    return [product.to(tensor.dtype) for product, tensor in zip(products, tensors, strict=True)]

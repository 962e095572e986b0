"""Weights of one shape, worked on as one tensor.

A network has far fewer shapes than weights, and on small tensors an operation costs what its call costs.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch

from .axes import ChannelAxis


@dataclass(frozen=True)
class Alike:
    """Several weights whose channels lie in them in the same way; one alone where an axis has an `index`.

    Attributes:
        names: of the weights, N of them.
        axes: of the first one; of the others only the units are different.
    """

    names: tuple[str, ...]
    axes: tuple[ChannelAxis, ...]

    def sums(self, stacked: torch.Tensor, axis: ChannelAxis) -> torch.Tensor:
        """Sums over each channel of an axis, (N, channels), of figures not below 0, (N, *the weight's shape)."""
        sums = stacked.sum([dim for dim in range(1, stacked.ndim) if dim != axis.dim + 1])
        return sums if axis.index is None else axis.laid_out(sums[0]).sum(1)[None]

    def means(self, stacked: torch.Tensor, axis: ChannelAxis) -> torch.Tensor:
        """Means over each channel of an axis, (N, channels)."""
        return self.sums(stacked, axis) / self.sums(torch.ones_like(stacked[:1]), axis)

    def spread(self, by_channel: torch.Tensor, axis: ChannelAxis, fixed: float, ndim: int) -> torch.Tensor:
        """One figure a position from (N, channels), shaped to be multiplied with N stacked weights of `ndim` axes."""
        if axis.index is not None:
            return axis.spread(by_channel[0], fixed, ndim)[None]
        return by_channel.view(len(self.names), *[-1 if dim == axis.dim else 1 for dim in range(ndim)])


def alike(
    weights: Mapping[str, torch.Tensor], axes: Mapping[str, tuple[ChannelAxis, ...]], apart: Container[str] = ()
) -> list[Alike]:
    """All weights, those that are alike together; those named in `apart` never with others."""
    kinds: dict[tuple, list[str]] = {}
    for name, weight in weights.items():
        alone = name if any(axis.index is not None for axis in axes[name]) else ""
        dims = tuple(axis.dim for axis in axes[name])
        key = (weight.shape, weight.stride(), weight.dtype, weight.device, dims, alone, name in apart)
        kinds.setdefault(key, []).append(name)
    return [Alike(tuple(names), axes[names[0]]) for names in kinds.values()]


def stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors of one shape as one, in at least float32: a view of one alone, and in the memory format of the first."""
    first = tensors[0]
    if len(tensors) == 1:
        return wide(first)[None]
    order = sorted(range(first.ndim), key=first.stride, reverse=True)
    as_in_memory = torch.stack([tensor.permute(order) for tensor in tensors])
    return wide(as_in_memory.permute(0, *[1 + order.index(dim) for dim in range(first.ndim)]))


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in at least float32, in which its squares can be added up."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()

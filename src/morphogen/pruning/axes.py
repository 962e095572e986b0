"""The channels of the layers of a sub-network: which slices of a weight live and die together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from ..dense.fake import tensor_named
from ..dense.network import Network
from ..dense.subnet import FIXED


@dataclass(frozen=True)
class ChannelAxis:
    """The input or output channels of one convolution or linear layer, as far as they may go.

    A channel is all positions of the axis that belong to one unit of a channel group: mostly one, for a grouped
    convolution the channels of one of its groups, for a linear layer behind `flatten` all pixels of a channel.

    Attributes:
        name: of the weight.
        dim: its axis.
        units: for each channel, the number of its unit through all groups; int64, on the CPU.
        index: for each position of the axis its channel, the number of channels where the position is fixed; on the
            weight's device. None where each position is a channel of its own.
        places: for each channel its positions, filled up with the number of positions; None with `index`.
    """

    name: str
    dim: int
    units: torch.Tensor
    index: torch.Tensor | None = None
    places: torch.Tensor | None = None

    def laid_out(self, by_position: torch.Tensor) -> torch.Tensor:
        """Figures not below 0, one a position, as a row for each channel, filled up with 0.

        Rows are reduced in the same order every time, unlike what is scattered on a GPU: ranks that shrink their
        weights each for itself stay the same.
        """
        if self.places is None:
            return by_position[:, None]
        return torch.cat([by_position, by_position.new_zeros(1)])[self.places]

    def maxima(self, weight: torch.Tensor) -> torch.Tensor:
        """The largest absolute value in each channel of the weight."""
        return self.laid_out(weight.abs().amax([dim for dim in range(weight.ndim) if dim != self.dim])).amax(1)

    def spread(self, by_channel: torch.Tensor, fixed: float, ndim: int) -> torch.Tensor:
        """One figure a position from one a channel, shaped to be multiplied with the weight."""
        if self.index is not None:
            by_channel = torch.cat([by_channel, by_channel.new_full((1,), fixed)])[self.index]
        return by_channel.view(*[-1 if dim == self.dim else 1 for dim in range(ndim)])


def channel_axes(network: Network) -> dict[str, tuple[ChannelAxis, ...]]:
    """The axes of every weight of the present sub-network, by the weight's name, output channels first."""
    structure = network.structure
    alive = structure.alive_mask(network.current)
    found: dict[str, tuple[ChannelAxis, ...]] = {}
    for name, layout in structure.present(network.current).items():
        if layout.role.kind != "weight":
            continue
        device = tensor_named(network.model, name).device
        dims = dict.fromkeys((*layout.role.outs, *layout.role.ins))
        axes = [(dim, layout.axes[dim]) for dim in dims]
        found[name] = tuple(_axis(name, dim, axis[alive[axis]], device) for dim, axis in axes if axis is not None)
    return {name: axes for name, axes in found.items() if axes}


def _axis(name: str, dim: int, units: torch.Tensor, device: torch.device) -> ChannelAxis:
    known, index = units.unique(return_inverse=True)
    if known[0] == FIXED:
        known = known[1:]
        index = torch.where(index == 0, len(known), index - 1)
    if len(known) == len(units):  # each position is a channel; `unique` sorted them
        return ChannelAxis(name, dim, units)
    positions = index.argsort(stable=True).split(index.bincount().tolist())[: len(known)]
    places = pad_sequence(list(positions), batch_first=True, padding_value=len(index))
    return ChannelAxis(name, dim, known, index.to(device), places.to(device))

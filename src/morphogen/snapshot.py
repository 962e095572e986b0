"""A run's weights and optimizer state, to go back to."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from .momentum import MomentumNetwork
from .network import Network


class Snapshot:
    """What a network, its optimizers and its averaged copies hold at a sub-network.

    Attributes:
        subnetwork: where the network has to be again when the rest is restored.
        momentum: the momentum network, a copy of its own.
    """

    def __init__(
        self,
        network: Network,
        optimizers: Sequence[Optimizer],
        averages: Sequence[nn.Module],
        momentum: MomentumNetwork | None,
    ):
        self.subnetwork = network.current
        self.momentum = copy.deepcopy(momentum)
        self._holders = [network.model, *optimizers, *averages]
        self._states = [copy.deepcopy(holder.state_dict()) for holder in self._holders]

    def restore(self) -> None:
        """Bring everything back; the network is at `subnetwork` again."""
        for holder, state in zip(self._holders, self._states, strict=True):
            holder.load_state_dict(state)

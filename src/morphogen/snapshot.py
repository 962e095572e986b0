"""A run's weights and optimizer state, to go back to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

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
        trees: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        momentum: MomentumNetwork | None,
    ):
        """`trees` are the model and its averaged copies."""
        self.subnetwork = network.current
        self.momentum = copy.deepcopy(momentum)
        self._holders = [*trees, *optimizers]
        self._states = [copy.deepcopy(holder.state_dict()) for holder in self._holders]

    def restore(self) -> None:
        """Bring everything back; the network is at `subnetwork` again."""
        for holder, state in zip(self._holders, self._states, strict=True):
            if isinstance(holder, Optimizer):
                _restore_optimizer(holder, state)
            else:
                holder.load_state_dict(state)


def _restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """The groups stay the same dictionaries, by which others know them; so do the parameters in them."""
    groups = list(optimizer.param_groups)
    optimizer.load_state_dict(state)
    for group, loaded in zip(groups, optimizer.param_groups, strict=True):
        group.update({key: value for key, value in loaded.items() if key not in ("params", "param_names")})
    optimizer.param_groups[:] = groups

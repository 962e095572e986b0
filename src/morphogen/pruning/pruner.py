"""A network being sparsified: the penalty in its loss, and what is left of it at a reconfiguration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed
from torch.optim import Optimizer

from ..errors import ConfigError, TrainingError
from ..network import Network
from ..subnet import SubNetwork
from .lasso import GroupLasso
from .policy import Pruning
from .proximal import proximal_steps
from .sparsity import sparse_part

NEAR = 64
"""Nodes of a loss's graph, from the loss on, that are looked through for a penalty: it is added last."""


class Pruner:
    """The group lasso at work on a network.

    Attributes:
        policy: how to prune.
        coefficient: lambda, set on the first batch with the penalty and fixed from then on; None before.
    """

    def __init__(self, network: Network, policy: Pruning, optimizers: Sequence[Optimizer]):
        """
        Raises:
            ConfigError: no channel of the network can go, or none that can is trained.
        """
        self.network, self.policy, self.optimizers = network, policy, optimizers
        self.coefficient: float | None = None
        self._lasso = GroupLasso(network)
        if not self._lasso.axes:
            raise ConfigError(
                "nothing of this model can be pruned",
                expected="a convolution or linear layer whose channels can change, and which is trained",
                todo="`morphogen inspect` says what is pinned and why",
            )

    def penalised(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss with the penalty; with a proximal step, the loss as it is.

        The first loss sets the coefficient, r L / ((1 - r) P), so that the penalty is the share r of the whole
        (equation 3). Between ranks the mean loss does, the one time.

        Args:
            loss: a scalar, of one batch, without a penalty.

        Raises:
            TrainingError: the first loss is not finite, or not above 0, or all weights are 0.
            ConfigError: the loss holds the penalty already.
        """
        if _holds_penalty(loss):
            raise ConfigError(
                "the loss holds the group lasso penalty already",
                expected="the loss of the task alone",
                todo="Call run.penalised(loss) once, and leave GroupLasso out of the loss",
            )
        with torch.autocast(loss.device.type, enabled=False):
            if self.coefficient is None:
                self.coefficient = self._coefficient(loss)
            return loss if self.policy.proximal else loss + self.coefficient * self._lasso()

    def end_step(self) -> None:
        """After an optimizer step: the proximal one."""
        if self.policy.proximal and self.coefficient is not None:
            self._lasso.shrink(proximal_steps(self._lasso.weights, self.optimizers, self.coefficient))

    def left(self) -> SubNetwork:
        """The sub-network without what is sparse now."""
        return sparse_part(self.network, self.policy.threshold, self.policy.multiple_of)

    def follow(self) -> None:
        """After a morph, the penalty is that of the new sub-network."""
        self._lasso = GroupLasso(self.network)

    def _coefficient(self, loss: torch.Tensor) -> float:
        mean, penalty = loss.detach().double().clone(), self._lasso().detach().double()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(mean)
            mean /= distributed.get_world_size()
        ratio = self.policy.ratio
        coefficient = float(ratio * mean / ((1 - ratio) * penalty))
        if not 0 < coefficient < float("inf"):
            raise TrainingError(
                "the penalty's coefficient cannot be set on this batch",
                expected="a loss and weights that are finite and not zero",
                found=f"loss {float(mean):.4g}, sum of the channels' norms {float(penalty):.4g}",
            )
        return coefficient


def _holds_penalty(loss: torch.Tensor) -> bool:
    """Whether the group lasso is near the root of a loss's graph."""
    nodes, seen = [loss.grad_fn], 0
    while nodes and seen < NEAR:
        node = nodes.pop(0)
        if node is None:
            continue
        seen += 1
        if node.name() == "_PenaltyBackward":
            return True
        nodes += [following for following, _ in node.next_functions]
    return False

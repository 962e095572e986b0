"""A network being sparsified: the penalty in its loss, and what is left of it at a reconfiguration."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from ..cost.flops import cost
from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import ConfigError, TrainingError
from ..machine.ranks import mean
from .lasso import GroupLasso
from .policy import Pruning
from .proximal import ADAPTIVE, check_known, proximal_steps
from .sparsity import sparse_part

FAR = 0.05
"""By so much more or less of the FLOPs than wanted a network may end without a warning."""

NEAR = 64
"""Nodes of a loss's graph, from the loss on, that are looked through for a penalty: it is added last."""


class Pruner:
    """The group lasso at work on a network.

    Attributes:
        policy: how to prune.
        coefficient: lambda, set on the first batch with the penalty and fixed from then on, or steered to the policy's
            target; None before, 0 once the target is reached.
    """

    def __init__(self, network: Network, policy: Pruning, optimizers: Sequence[Optimizer]):
        """
        Raises:
            ConfigError: no channel of the network can go, or none that can is trained; a proximal step behind an
                optimizer whose own steps are not known.
        """
        self.network, self.policy, self.optimizers = network, policy, optimizers
        self.coefficient: float | None = None
        self._lasso = GroupLasso(network, folded=policy.folded)
        if not self._lasso.axes:
            raise ConfigError(
                "nothing of this model can be pruned",
                expected="a convolution or linear layer whose channels can change, and which is trained",
                todo="`morphogen inspect` says what is pinned and why",
            )
        if policy.proximal:
            check_known(optimizers)
        elif any(key in group for optimizer in optimizers for group in optimizer.param_groups for key in ADAPTIVE):
            warnings.warn(
                "behind an adaptive optimizer weights hover around zero, and little or nothing is ever taken out; "
                "use PruneTrain(proximal=True)",
                stacklevel=3,
            )

    def penalised(self, loss: torch.Tensor, epoch: int) -> torch.Tensor:
        """The loss with the penalty; with a proximal step, and in an epoch without a penalty, the loss as it is.

        The first loss sets the coefficient, r L / ((1 - r) P), so that the penalty is the share r of the whole
        (equation 3). Between ranks the mean loss does, the one time.

        Args:
            loss: a scalar, of one batch, without a penalty.
            epoch: of the run.

        Raises:
            TrainingError: the first loss is not finite, or not above 0, or all weights are 0.
            ConfigError: the loss holds the penalty already.
        """
        penalises = self.policy.penalises(epoch)
        sets = self.coefficient is None and (penalises or self.policy.from_the_first_batch)
        if not (penalises or sets):
            return loss
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise ConfigError(
                "the loss is not one figure",
                expected="the mean loss of a batch, a tensor with one entry",
                found=f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss),
            )
        if _holds_penalty(loss):
            raise ConfigError(
                "the loss holds the group lasso penalty already",
                expected="the loss of the task alone",
                todo="Call run.penalised(loss) once, and leave GroupLasso out of the loss",
            )
        with torch.autocast(loss.device.type, enabled=False):
            if sets:
                self.coefficient = self._coefficient(loss)
            if self.policy.proximal or not penalises or not self.coefficient:
                return loss
            return loss + self.coefficient * self._lasso()

    def end_step(self, epoch: int) -> None:
        """After an optimizer step of an epoch: the proximal one."""
        if self.policy.proximal and self.coefficient and self.policy.penalises(epoch):
            self._lasso.follow()
            self._lasso.shrink(proximal_steps(self._lasso.trained, self.optimizers, self.coefficient))

    def steer(self, left: SubNetwork, epoch: int) -> None:
        """Set the coefficient by what a reconfiguration before an epoch has left of the dense network."""
        if self.coefficient is not None and self.policy.target is not None:
            share = cost(self.network, left).forward / cost(self.network, self.network.dense).forward
            self.coefficient = self.policy.steered(self.coefficient, share, epoch)
            if epoch == self.policy.at[-1]:
                self._compare(share, self.policy.target)

    @staticmethod
    def _compare(share: float, target: float) -> None:
        """Warn of a network that ends far from its target."""
        if abs(share - target) > FAR:
            todo = "a larger ratio, or a longer run, prunes more" if share > target else "a smaller ratio prunes less"
            warnings.warn(
                f"the penalty ends with {share:.0%} of the FLOPs left, and {target:.0%} were wanted; {todo}",
                stacklevel=9,
            )

    def left(self) -> SubNetwork:
        """The sub-network without what is sparse now."""
        if self.coefficient is None:
            warnings.warn(
                "the network is reconfigured, and no loss has been penalised yet; call run.penalised(loss).backward() "
                "instead of loss.backward()",
                stacklevel=8,
            )
        policy = self.policy
        return sparse_part(self.network, policy.threshold, policy.multiple_of, folded=policy.folded)

    def _coefficient(self, loss: torch.Tensor) -> float:
        task, penalty = mean(loss.detach().double()), self._lasso().detach().double()
        ratio = self.policy.ratio
        coefficient = float(ratio * task / ((1 - ratio) * penalty))
        if not 0 < coefficient < float("inf"):
            raise TrainingError(
                "the penalty's coefficient cannot be set on this batch",
                expected="a loss and weights that are finite and not zero",
                found=f"loss {float(task):.4g}, sum of the channels' norms {float(penalty):.4g}",
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

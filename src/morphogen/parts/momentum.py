"""The momentum network: an exponential moving average of the weights that grown blocks are taken from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..machine.averages import averaged_and_copied, put
from ..run.values import load_tree, tree_state


@dataclass(frozen=True)
class Momentum:
    """How fast the momentum network follows: w' = m w' + (1 - m) w after every step (AutoProg, equation 4).

    Attributes:
        decay: m, outright; None ties it to the stage's length.
        horizon: the share of a stage's steps that the average reaches back over, m = 1 - 1 / (share x steps).
            The papers' 0.998 and 0.99996 reach back 500 and 25,000 steps, whatever the stage.

    Raises:
        ConfigError: a decay outside [0, 1), a horizon not above 0.
    """

    decay: float | None = None
    horizon: float = 0.1

    def __post_init__(self) -> None:
        if (self.decay is not None and not 0 <= self.decay < 1) or not 0 < self.horizon <= 1:
            raise ConfigError(
                "momentum out of range",
                expected="0 <= decay < 1, 0 < horizon <= 1",
                found=f"decay {self.decay}, horizon {self.horizon}",
            )

    def decay_over(self, steps: int, candidates: int = 0) -> float:
        """m in a stage of so many steps; in a search it reaches back over a step of every candidate at least."""
        return self.decay if self.decay is not None else 1 - 1 / max(1.0, self.horizon * steps, candidates)


class MomentumNetwork(nn.Module):
    """An averaged copy of a model: parameters and running statistics are averaged, other buffers copied.

    (`torch.optim.swa_utils.AveragedModel` averages every buffer or none; an attention mask of -inf would turn NaN.)

    Attributes:
        module: the copy.
        decay: m; set anew for each stage.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Follow the model by one step, in two fused operations."""
        theirs, ours = (averaged_and_copied(tree) for tree in (self.module, model))
        torch._foreach_lerp_(theirs[0], ours[0], 1 - self.decay)
        put(theirs[1], ours[1])


def momentum_state(momentum: MomentumNetwork | None) -> dict[str, Any] | None:
    """A momentum network as plain data and tensors."""
    return None if momentum is None else {"decay": momentum.decay, **tree_state(momentum)}


def momentum_from(state: Mapping[str, Any] | None, model: nn.Module) -> MomentumNetwork | None:
    """The inverse; the model is at the sub-network that it had then."""
    if state is None:
        return None
    momentum = MomentumNetwork(model, float(state["decay"]))
    load_tree(momentum, state)
    return momentum

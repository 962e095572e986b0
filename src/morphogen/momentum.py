"""The momentum network: an exponential moving average of the weights that grown blocks are taken from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .errors import ConfigError


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

    def decay_over(self, steps: int) -> float:
        """m in a stage of so many steps."""
        return self.decay if self.decay is not None else 1 - 1 / max(1.0, self.horizon * steps)


class MomentumNetwork(AveragedModel):
    """PyTorch's averaged model with buffers (running statistics) averaged too, by fused updates.

    Attributes:
        decay: m; set anew for each stage.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, multi_avg_fn=self._average, use_buffers=True)
        self.decay = decay
        self.module.requires_grad_(False)

    def _average(self, averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], _: object) -> None:
        theirs, ours = list(averaged), list(current)
        with torch.no_grad():
            if theirs[0].is_floating_point():
                torch._foreach_lerp_(theirs, ours, 1 - self.decay)
            else:  # counters and index tables
                torch._foreach_copy_(theirs, ours)

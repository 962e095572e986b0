"""The baseline: the dense network from the first step to the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..network import Network
from ..schedule.stages import Stage
from .method import Method


@dataclass(frozen=True)
class Dense(Method):
    """Ordinary training, through the same loop and clock as every method."""

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """One stage with everything alive."""
        return [Stage(0, network.dense)]

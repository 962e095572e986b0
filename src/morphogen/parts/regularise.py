"""Weak regularisation for small networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from ..dense.network import Network
from ..run.part import Part
from ..schedule.stages import Regularisation


class Regularise(Part):
    """Say how strong the recipe's regularisation is in each epoch; of several the weakest counts.

    Stochastic depth is the run's to set; augmentation is the loop's, see `Run.regularisation`.
    """

    name: ClassVar[str] = "regularise"
    sharded: ClassVar[bool] = True
    order: ClassVar[int] = 5
    single: ClassVar[bool] = False

    def __init__(self, strength: Callable[[int, int], Regularisation]):
        """`strength` is a function of the epoch and of the number of epochs."""
        self._strength = strength

    def plan(self, network: Network, epochs: int) -> None:
        """Learn the length of the run."""
        self._epochs = epochs

    def regularisation(self, epoch: int) -> Regularisation:
        """That of the epoch."""
        return self._strength(epoch, self._epochs)

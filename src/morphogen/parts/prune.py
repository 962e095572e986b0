"""Pruning by a group lasso: channels become sparse while the network trains, and are taken out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from ..dense.network import Network
from ..dense.subnet import SubNetwork, union
from ..errors import ConfigError
from ..machine.ranks import decided
from ..pruning.policy import Pruning
from ..pruning.pruner import Pruner
from ..run.part import Part
from ..run.run import Run


class Prune(Part):
    """Penalise the channels of a network, and want what is left of it.

    Attributes:
        policy: when and how strongly, once the run's length is known.
        pruner: the group lasso at work.
        left: the dense network without what has been pruned.
    """

    name: ClassVar[str] = "prune"
    moves: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    shrinks: ClassVar[bool] = True
    pruner: Pruner

    def __init__(
        self, policy: Callable[[int], Pruning], restarts: Callable[[int], tuple[int, ...]] = lambda epochs: ()
    ):
        """Both are functions of the number of epochs, see `restarts` of `Part`."""
        self._policy, self._restarts = policy, restarts
        self._skipped = True
        self._left_at: dict[SubNetwork, SubNetwork] = {}  # what was left, when this trained

    def settings(self) -> tuple[Any, ...]:
        """Those of the method whose policy it is."""
        return (getattr(self._policy, "__self__", self._policy),)

    def plan(self, network: Network, epochs: int) -> None:
        """Raises ConfigError where the settings do not fit the length."""
        self._epochs, self.policy, self.left = epochs, self._policy(epochs), network.dense
        self._starts = self._restarts(epochs)

    @property
    def restarts(self) -> tuple[int, ...]:
        """Where pruning divides the run into runs of their own."""
        return self._starts

    def begin(self, run: Run) -> None:
        """Raises ConfigError where nothing can be pruned."""
        super().begin(run)
        self.pruner = Pruner(run.network, self.policy, run.followers[1])

    def before_epoch(self, epoch: int) -> bool:
        """Take out what has become sparse, where an interval is over.

        Before anything enters: what has not trained yet would be judged by what it was filled with.
        """
        self._reconfigure(epoch)
        return False

    def end(self) -> None:
        """The same at the end of the run."""
        self._reconfigure(self._epochs)

    def _reconfigure(self, epoch: int) -> None:
        # A run that is joined late has penalised nothing yet: zeros are those of an initialisation.
        if any(0 <= self.run.epoch < at <= epoch for at in self.policy.at):
            old = self.run.network.current
            left = decided(self.pruner.left())  # on another rank a rounding could differ
            if left != old:
                self.left = _without(self.left, old, left)
            self.pruner.steer(self.left, epoch)

    def wants(self, epoch: int) -> SubNetwork:
        """What has not been pruned."""
        return self.left

    def begin_epoch(self, epoch: int) -> None:
        """Remember what is left, for weights that are loaded again without a word of it."""
        self._left_at[self.run.network.current] = self.left

    def came_to(self, subnetwork: SubNetwork) -> None:
        """What was left when it trained is left again; where it never has, all of it is."""
        self.left = self._left_at.get(subnetwork, union([self.left, subnetwork]))

    def final(self) -> SubNetwork:
        """The same."""
        return self.left

    def on_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss with the penalty, see `Pruner.penalised`."""
        self._skipped = False
        return self.pruner.penalised(loss, max(0, self.run.epoch))

    def before_step(self) -> None:
        """Raises ConfigError where this epoch has a penalty, and the loss has not gone through `run.penalised`."""
        epoch, pruner = max(0, self.run.epoch), self.pruner
        sets = pruner.coefficient is None and (self.policy.penalises(epoch) or self.policy.from_the_first_batch)
        adds = self.policy.penalises(epoch) and not self.policy.proximal
        if self._skipped and (sets or adds):
            raise ConfigError(
                "the network is to be pruned, and this step's loss has no penalty",
                where=self.run.who,
                expected="run.penalised(loss).backward() instead of loss.backward()",
            )
        self._skipped = True

    def end_step(self) -> None:
        """The proximal step."""
        self.pruner.end_step(max(0, self.run.epoch))

    def state_dict(self) -> dict[str, Any]:
        """What is left, and lambda."""
        return {"left": self.left.to_dict(), "coefficient": self.pruner.coefficient}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Raises CheckpointError where that is no part of the network."""
        left = SubNetwork.from_dict(state["left"])
        self.run.network.check(left)
        coefficient = None if state["coefficient"] is None else float(state["coefficient"])
        if coefficient is not None and not 0 <= coefficient < math.inf:
            raise ValueError(f"a coefficient of {coefficient}")

        def load() -> None:
            self.left, self.pruner.coefficient, self._skipped = left, coefficient, True

        return load


def _without(whole: SubNetwork, old: SubNetwork, new: SubNetwork) -> SubNetwork:
    """A sub-network without what is in `old` and no more in `new`."""
    channels, blocks = (
        {name: tuple(sorted({*all_of_it} - ({*was[name]} - {*now[name]}))) for name, all_of_it in mine.items()}
        for mine, was, now in ((whole.channels, old.channels, new.channels), (whole.blocks, old.blocks, new.blocks))
    )
    return replace(whole, channels=channels, blocks=blocks)

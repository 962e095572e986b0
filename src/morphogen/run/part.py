"""A part of a method: it wants a sub-network in every epoch, and does its own work around a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..morph.entry import DepthOperator
from ..morph.growth import GrowthOperator
from ..schedule.stages import Regularisation, Stage

if TYPE_CHECKING:
    from .run import Run

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What the model is called with: positional and keyword arguments."""


class Part:
    """One thing that a method does. All that a part does not need stays as it is here: nothing.

    A part is made without a network, by a method; `plan` gives it the network, `begin` the run that it works in. A run
    asks its parts in the order of their `order`, in each epoch: `before_epoch`, `wants`, then, after the one morph,
    `begin_epoch`; in each step: `before_forward`, `on_loss`, `end_step`; and `end`.

    Attributes:
        name: the key of its state, and its name in messages.
        order: its place among the parts of a run.
        single: a run has one of this kind at most; equal ones of two methods are one.
        moves: it changes the network's size, or the batch, by a will of its own.
        alone: a run with this part has no other that moves.
        operator, depth_operator: how it has new channels and blocks filled; None where it adds none.
        prunes: any channel may go, whatever the stages say.
        shrinks: the network that it leaves is smaller than the dense one.
        sharded: it leaves weights alone between morphs, so that each rank may hold a shard of them (`fully_shard`).
        replicated: its `before_forward` may run in each of the copies that `DataParallel` makes for a forward pass.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 0
    single: ClassVar[bool] = True
    moves: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    operator: str | GrowthOperator | None = None
    depth_operator: str | DepthOperator | None = None
    prunes: ClassVar[bool] = False
    shrinks: ClassVar[bool] = False
    sharded: ClassVar[bool] = False
    replicated: ClassVar[bool] = False
    run: Run

    # Before the run.

    def settings(self) -> tuple[Any, ...]:
        """What makes it equal to another part of its kind."""
        return (self,)

    def plan(self, network: Network, epochs: int) -> None:
        """Learn the network and the length of the run.

        Raises:
            ConfigError: the settings do not fit them.
        """

    @property
    def stages(self) -> Sequence[Stage]:
        """The schedule as far as it is known; empty for a part that follows none."""
        return ()

    def continued(self, found: Sequence[SubNetwork]) -> Sequence[Stage]:
        """The schedule after searches that found these sub-networks, in order."""
        return self.stages

    def possible(self) -> Sequence[SubNetwork] | None:
        """Every sub-network that it may want, where that is more than its stages say."""
        return None

    def regularisation(self, epoch: int) -> Regularisation:
        """How strong the recipe's regularisation is in an epoch, at most."""
        return Regularisation()

    @property
    def restarts(self) -> tuple[int, ...]:
        """The epochs at which the recipe's learning-rate schedule begins anew."""
        return ()

    # In the run.

    def begin(self, run: Run) -> None:
        """Join a run; its optimizers, averages and figures are known.

        Raises:
            ConfigError: something that the part needs of the loop was not given.
        """
        self.run = run

    def before_epoch(self, epoch: int) -> bool:
        """Decide what depends on the epochs so far; the network is as it trained last. Whether a new stage begins."""
        return False

    def wants(self, epoch: int) -> SubNetwork:
        """The sub-network it wants to train in an epoch; what others want is intersected with it."""
        return self.run.network.dense

    def final(self) -> SubNetwork:
        """The sub-network it wants when the run is over."""
        return self.run.network.dense

    def came_to(self, subnetwork: SubNetwork) -> None:
        """A state of another size was loaded, and nothing of this part came with it."""

    def before_growth(self, target: SubNetwork) -> None:
        """The network is about to grow."""

    def begin_epoch(self, epoch: int) -> None:
        """The network has the size it trains at in this epoch."""

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Call:
        """Before a forward pass; `training` where a step begins (or goes on, as gradients accumulate).

        Returns:
            The arguments for the model.
        """
        return args, kwargs

    def after_forward(self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """After a forward pass; `args` and `kwargs` as the loop gave them.

        Returns:
            The output for the loop.
        """
        return output

    def on_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to take gradients of, a scalar."""
        return loss

    def before_step(self) -> None:
        """Before an optimizer step; raises ConfigError where the loop has left something out."""

    def end_step(self) -> None:
        """After an optimizer step."""

    def end(self) -> None:
        """Training is over; the last morph follows."""

    def close(self) -> None:
        """Leave the network an ordinary one at its present size, at once."""

    def runs(self, step: int) -> SubNetwork | None:
        """The sub-network that a step of this epoch runs, where it is another one than the network is."""
        return None

    def swapped(self) -> AbstractContextManager[None] | None:
        """See `Run.swapped`."""
        return None

    def next_epoch(self, epoch: int) -> int:
        """The epoch to train after this one."""
        return epoch + 1

    @property
    def counts_steps(self) -> bool:
        """Whether it reckons with the number of steps in an epoch."""
        return False

    @property
    def batch_size(self) -> int | None:
        """Images in a step of this epoch, on each rank; None where it leaves the batch alone."""
        return None

    @property
    def lr_scale(self) -> float:
        """What the learning rate is multiplied by in this epoch."""
        return 1.0

    def steps_in(self, subnetwork: SubNetwork, steps: int) -> int:
        """Steps of an epoch of a sub-network, where there would be so many with the first batch."""
        return steps

    @property
    def average(self) -> nn.Module | None:
        """An averaged copy of the model that grown blocks are taken from, at the network's present size."""
        return None

    @property
    def copies(self) -> int:
        """Averaged copies that it may keep."""
        return 0

    @property
    def busy(self) -> bool:
        """Whether steps run only a part of the network, so that some parameters get no gradient."""
        return False

    def postpone(self, epoch: int, option: str) -> None:
        """See `Run.revise`.

        Raises:
            ConfigError: it cannot.
        """

    def state_dict(self) -> dict[str, Any]:
        """Where it is between two steps: plain data and tensors, by name."""
        return {}

    def notes(self) -> dict[str, Any]:
        """As much of its state as plain data can hold, None in the place of the rest; asked for often."""
        return self.state_dict()

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Read and check a state, change nothing; what is returned brings the part to it, when the network is there.

        It may be what `notes` gave, where a script has saved its model alone.

        Raises:
            CheckpointError: a state that cannot be gone on from; KeyError, TypeError, ValueError where it is damaged.
        """
        return lambda: None

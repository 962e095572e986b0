"""The dynamic mini-batch: larger batches where the sub-network leaves memory free (PruneTrain, section 4.3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..cost.memory import kept_tensors
from ..dense.subnet import SubNetwork
from ..errors import CheckpointError, ConfigError
from ..run.images import images_in
from ..run.part import Call, Part
from ..run.run import Run
from ..schedule.mini_batch import MiniBatch
from .batching import Batching


class Batch(Part):
    """Set the batch of every epoch, which the loop takes from `run.batch_size`, and the learning rate's factor.

    Attributes:
        policy: how far the batch may grow.
        batching: at work, once the run has begun.
    """

    name: ClassVar[str] = "change the mini-batch"
    order: ClassVar[int] = 6
    moves: ClassVar[bool] = True
    batching: Batching

    def __init__(self, policy: MiniBatch):
        self.policy = policy
        self._images, self._told = 0, -1

    def settings(self) -> tuple[Any, ...]:
        """The policy."""
        return (self.policy,)

    def begin(self, run: Run) -> None:
        """Raises ConfigError where the first batch is not known."""
        super().begin(run)
        if run.first_batch is None:
            raise ConfigError(
                "the mini-batch is to grow, and the first one is not known",
                where=run.who,
                expected="attach(..., batch_size=...)",
            )
        self.batching = Batching(self.policy, run.memory, run.followers[1], run.first_batch, run.steps_per_epoch)

    @property
    def batch_size(self) -> int | None:
        """Of the present sub-network."""
        return self.batching.size

    @property
    def lr_scale(self) -> float:
        """By that batch."""
        return self.batching.lr_scale

    def begin_epoch(self, epoch: int) -> None:
        """Follow the sub-network, and begin to measure."""
        trees, optimizers = self.run.followers
        copies = [*trees[1:], *self.run.averages]
        held = kept_tensors(self.run.network.model, *optimizers) + [
            tensor for copy in copies for tensor in (*copy.parameters(), *copy.buffers())
        ]
        self.batching.follow(self.run.network.current)
        self.batching.begin_epoch(held)
        self._images = 0

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Call:
        """Count the images of the step."""
        if training:
            self.batching.begin_step()
            images = images_in(self.run.network, args, kwargs)
            self._images += 0 if images is None else len(images[1])
        return args, kwargs

    def end_step(self) -> None:
        """Warn, once an epoch, where the first step had another batch than the run wants."""
        self.batching.end_step()
        seen, epoch = self._images, self.run.epoch
        self._images = 0
        if seen and self._told != epoch and seen != self.batching.size:
            warnings.warn(
                f"epoch {epoch}: a step of {seen} images, where the run expects {self.batching.size}; take "
                "run.batch_size images in every step, and multiply the learning rate by run.lr_scale",
                stacklevel=2,
            )
        self._told = epoch

    def steps_in(self, subnetwork: SubNetwork, steps: int) -> int:
        """The same images in larger batches."""
        return self.batching.steps_of(subnetwork, steps)

    def state_dict(self) -> dict[str, Any]:
        """See `Batching`."""
        return self.batching.state_dict()

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Raises CheckpointError where the first batch was another."""
        first = int(state["first"])
        if self.batching.first != first:
            raise CheckpointError(
                "the run that was saved has another first batch on each rank, from which its mini-batch grew",
                expected=f"{self.batching.first} images",
                found=f"{first}",
                todo="Resume with as many ranks as before",
            )
        read = self.batching.checked(state)

        def load() -> None:
            self.batching.go_on_from(*read)
            self._images = 0

        return load

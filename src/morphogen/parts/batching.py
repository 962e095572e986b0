"""The mini-batch of a run: its policy, and the memory that it has (PruneTrain, section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from ..cost.memory import StepMemory, bytes_of
from ..dense.subnet import SubNetwork
from ..errors import ConfigError
from ..machine.ranks import gathered
from ..schedule.mini_batch import MiniBatch, step_sizes

SECOND_MOMENTS = ("betas", "beta2", "beta2_decay", "rho", "centered", "initial_accumulator_value")
"""Settings by which optimizers that divide by second moments are known: Adam's kin, Adafactor, Adadelta, RMSprop,
Adagrad."""

SETTLED = 3
"""Steps after which gradients, optimizer state and workspaces are all there."""


class Batching:
    """How many images a step of the present sub-network takes.

    The batch is a function of the sub-network, and changes only where that does, or where a measurement finds that it
    exceeds the budget. With several ranks it is each rank's, as in the paper, the same on all.

    Attributes:
        size: images in a step.
        factor: measured bytes by modelled ones; 1 until a step has been measured, on a CPU always.
    """

    def __init__(
        self,
        policy: MiniBatch,
        memory: StepMemory,
        optimizers: Sequence[Optimizer],
        first: int,
        steps_per_epoch: int | None = None,
    ):
        """`follow` says where to begin.

        Args:
            policy: of the method.
            memory: of the run's network.
            optimizers: of the model.
            first: images in a step of the dense network.
            steps_per_epoch: with `first` images; where it is known, an epoch keeps one step at least.

        Raises:
            ConfigError: the first batch exceeds the limit, or the memory budget.
        """
        self.policy, self.memory, self.first, self.size, self.factor = policy, memory, first, first, 1.0
        self._most = None if steps_per_epoch is None else first * steps_per_epoch
        self._adaptive = any(key in group for o in optimizers for group in o.param_groups for key in SECOND_MOMENTS)
        self._present: SubNetwork | None = None
        if policy.limit is not None and policy.limit < first:
            raise ConfigError(
                "the first batch is above the limit",
                where="DynamicBatch",
                expected=f"limit at least {first}",
                found=f"{policy.limit}",
            )
        dense = memory.bytes(memory.network.dense, first)
        if policy.budget is not None and policy.budget < dense:
            raise ConfigError(
                "a memory budget below the first batch",
                where="DynamicBatch",
                expected=f"at least {dense:,} bytes ({_gib(dense)}), the dense network with {first} images",
                found=f"{policy.budget:,} bytes ({_gib(policy.budget)})",
                todo="Begin with a smaller batch, or raise the budget",
            )
        self._dense = dense
        self._gauge = Gauge() if memory.network.fake.device.type == "cuda" else None

    @property
    def lr_scale(self) -> float:
        """What the first batch's learning rate is multiplied by."""
        return self.lr_scale_of(self.size)

    def lr_scale_of(self, images: int) -> float:
        """The same for a step of so many images, such as a smaller one at the end of an epoch."""
        return self.policy.lr_scale(images / self.first, self._adaptive)

    def state_dict(self) -> dict[str, Any]:
        """As JSON types."""
        present = None if self._present is None else self._present.to_dict()
        return {"first": self.first, "size": self.size, "factor": self.factor, "present": present}

    @staticmethod
    def checked(state: Mapping[str, Any]) -> tuple[int, float, SubNetwork | None]:
        """What `go_on_from` takes, of a state."""
        present, size, factor = state["present"], int(state["size"]), float(state["factor"])
        if size < 1 or not 0 < factor < math.inf:
            raise ValueError(f"a batch of {size} images, a factor of {factor}")
        return size, factor, None if present is None else SubNetwork.from_dict(present)

    def go_on_from(self, size: int, factor: float, present: SubNetwork | None) -> None:
        """Go on from there."""
        self.size, self.factor, self._present = size, factor, present

    def follow(self, subnetwork: SubNetwork) -> None:
        """Set the batch of what trains from here on; it stays where the sub-network does and the batch fits.

        Raises:
            ConfigError: see `StepMemory.bytes`.
        """
        if subnetwork != self._present or not self._fits(subnetwork, self.size):
            self._present, self.size = subnetwork, self.size_of(subnetwork)

    def steps_of(self, subnetwork: SubNetwork, steps_per_epoch: int) -> int:
        """Steps of an epoch that has so many with the first batch, see `step_sizes`."""
        return len(step_sizes(steps_per_epoch * self.first, self.size_of(subnetwork), self.first))

    def size_of(self, subnetwork: SubNetwork) -> int:
        """Images in a step of a sub-network.

        Raises:
            ConfigError: see `StepMemory.bytes`.
        """
        return self.policy.size(self.first, self._most, lambda images: self._fits(subnetwork, images))

    def _fits(self, subnetwork: SubNetwork, images: int) -> bool:
        # Without a budget the measure of the dense network and of this one are off alike.
        budget = self._dense if self.policy.budget is None else self.policy.budget / self.factor
        return self.memory.bytes(subnetwork, images) <= budget

    def begin_epoch(self, held: Iterable[torch.Tensor]) -> None:
        """On CUDA, begin to measure; PyTorch's peak of allocated bytes counts from here on.

        Args:
            held: what is there and belongs to this network.
        """
        if self._gauge is not None:
            self._gauge.begin(self.memory.network.fake.device, bytes_of(held))

    def begin_step(self) -> None:
        """A step begins; what ran between the beginning of the epoch and its first step is not measured."""
        if self._gauge is not None:
            self._gauge.begin_step()

    def end_step(self) -> None:
        """A step of the whole present sub-network is over; when enough are, its peak corrects the model."""
        measured = self._gauge.end_step() if self._gauge is not None else None
        if measured is not None and self._present is not None:
            modelled = self.memory.bytes(self._present, self.size)
            self.factor = max(gathered(measured / modelled))  # all ranks come to the same batch


class Gauge:
    """The peak of the first steps of an epoch, read off the allocator of a CUDA device."""

    def __init__(self) -> None:
        self._device, self._others, self._steps = torch.device("cuda"), 0, SETTLED

    def begin(self, device: torch.device, own: int) -> None:
        """Begin anew; of what is on the device, `own` bytes are the network's."""
        torch.cuda.reset_peak_memory_stats(device)
        self._device, self._others, self._steps = device, torch.cuda.memory_allocated(device) - own, 0

    def begin_step(self) -> None:
        """Before the first step the peak begins once more."""
        if self._steps == 0:
            torch.cuda.reset_peak_memory_stats(self._device)

    def end_step(self) -> int | None:
        """Bytes at the peak without what is others', when so many steps are over as it takes; else None."""
        self._steps += 1
        return torch.cuda.max_memory_allocated(self._device) - self._others if self._steps == SETTLED else None


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"

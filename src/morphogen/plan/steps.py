"""Step times of sub-networks, each taken in turn with the dense network's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..cost.flops import cost
from ..cost.memory import Allocations, bytes_of, kept_tensors
from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import ConfigError
from ..machine.private import tree_leaves, tree_map
from ..machine.timing import now, rounds_of
from ..morph.away import begin_to_keep
from ..morph.commit import morph
from ..parts import Average
from ..parts.momentum import MomentumNetwork
from ..run.assembly import Assembly
from .operations import Operations, divide

DISTURBED = 1.5
"""How much longer a step takes, now and then, on a machine that does something else too."""


@dataclass(frozen=True)
class Training:
    """What a training step is, besides the model.

    Attributes:
        images: (N, C, H, W), a batch of the size in use at full resolution, on the model's device. Other resolutions
            are measured on random numbers.
        labels: of these images; one tensor, or several, whose first axis is N.
        optimizer: makes one for a model; its learning rate is set to 0, so that nothing can diverge.
        loss: of a model on images and labels; also what surrounds the forward pass, such as autocast.
        clip_grad: largest norm of the gradients; 0 is no limit.
        ema: moving averages of the weights that the run keeps.
    """

    images: torch.Tensor
    labels: Any
    optimizer: Callable[[nn.Module], Optimizer]
    loss: Callable[[nn.Module, torch.Tensor, Any], torch.Tensor] = lambda model, images, labels: F.cross_entropy(
        model(images), labels
    )
    clip_grad: float = 0.0
    ema: int = 0


@dataclass(frozen=True)
class StepCost:
    """What a step of one sub-network costs, as shares, which a noisy machine leaves alone.

    Attributes:
        parameters: number of weights.
        flops: of a training step.
        time: step time by the dense network's, averages left out.
        low, high: between which its median lies in nine of ten cases.
        half: time of a step with half the batch by the step's; None for a batch of one.
        update: clipping and the optimizer's step, as a share of the step.
        average: one update of an averaged copy of the weights (EMA, momentum network), as a share of the step.
        operations: where the time of the forward and backward pass goes.
        kept: bytes that stay from step to step, averages left out.
        activations: what a step needs besides at its peak: read off the allocator on CUDA, else off the storages that
            exist.
        copy: bytes of an averaged copy.
    """

    parameters: int
    flops: float
    time: float
    low: float
    high: float
    half: float | None
    update: float
    average: float
    operations: Operations
    kept: int
    activations: float
    copy: int

    def growth(self, scale: float) -> float:
        """Time of a step with `scale` times the images, by this one's: the update takes what it takes."""
        return self.update + (1 - self.update) * scale

    def scaled(self, scale: float, dense: StepCost) -> StepCost:
        """The same with `scale` times the images; `dense` is the dense network's, not scaled.

        Whether a small step is bound by launches says nothing of a large one, so `half` is not known then.
        """
        growth = self.growth(scale)
        slower = growth / dense.growth(scale)
        return replace(
            self,
            flops=self.flops * scale,
            time=self.time * slower,
            low=self.low * slower,
            high=self.high * slower,
            half=self.half if scale == 1 else None,
            update=self.update / growth,
            average=self.average / growth,
            activations=self.activations * scale,
        )


class Step:
    """A training step of a model, on the images it was given last."""

    def __init__(self, model: nn.Module, training: Training):
        self.model, self.training = model, training
        self.optimizer = training.optimizer(model)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0

    def take(self, images: torch.Tensor, labels: Any) -> None:
        """Forward, backward, update."""
        self.backward(images, labels)
        self.update()

    def backward(self, images: torch.Tensor, labels: Any) -> None:
        """Forward and backward pass."""
        loss = self.training.loss(self.model, images, labels)
        self.optimizer.zero_grad()
        loss.backward()

    def update(self) -> None:
        """What follows the backward pass."""
        if self.training.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_grad)
        self.optimizer.step()


class Bench:
    """Brings one copy of the network to a sub-network after the other and times its steps.

    Attributes:
        batch_size: images in a step, at most those of the training.
        window: seconds to spend on one sub-network.
        costs: of what has been measured.
        dense_times: seconds of all steps of the dense network so far.
    """

    def __init__(self, network: Network, dense: nn.Module, training: Training):
        """`dense` is a copy of the dense model, `network.model` is changed."""
        self.network, self.training, self.device = network, training, training.images.device
        self.part, self.dense = Step(network.model, training), Step(dense, training)
        self.batch_size = len(training.images)
        self.window = 1.0
        self.costs: dict[SubNetwork, StepCost] = {}
        self.dense_times: list[float] = []
        self._morphs: dict[tuple[SubNetwork, SubNetwork], float] = {}

    @property
    def dense_seconds(self) -> float:
        """Median time of the dense network's steps."""
        return statistics.median(self.dense_times)

    @property
    def disturbed(self) -> tuple[float, float] | None:
        """A short and a long step of the dense network, in seconds, where one step in ten takes half as long again as
        another one in ten; else None."""
        times = sorted(self.dense_times)
        short, long = times[len(times) // 10], times[-1 - len(times) // 10]
        return (short, long) if long > DISTURBED * short else None

    def fit_batch(self, seconds: float) -> str | None:
        """Find the largest of the batch's halves, quarters and so on with which one sub-network takes that long.

        Begins with a small one. The dense network's memory is tried out too.

        Returns:
            Why the whole batch is not used; None where it is.
        """
        whole = len(self.training.images)
        sizes = sorted({whole >> k for k in range(6)} - {0, 1}) or [whole]
        for size, larger in zip(sizes, [*sizes[1:], None], strict=True):
            try:
                step = min(self._dense_step(size) for _ in range(3))
            except torch.cuda.OutOfMemoryError:
                if size == sizes[0]:
                    raise ConfigError(
                        "the dense network does not fit into memory", where=f"{size} images", todo="Use a smaller batch"
                    ) from None
                return "the dense network does not fit into memory with more"
            self.batch_size = size
            # Two warm-ups and three rounds of the dense network and of a part, which takes less of it.
            if larger and 8 * step * larger / size > seconds:
                return "more would take longer than it was given"
        return None

    def morph_seconds(self, before: SubNetwork, after: SubNetwork, assembly: Assembly) -> float:
        """Time of a method's own morph."""
        if before == after:
            return 0.0
        if (before, after) not in self._morphs:
            if assembly.restores:  # what is out is kept, which takes its time
                self._go(self.network.dense)
                begin_to_keep(self.network)
            self._go(before)
            momentum = MomentumNetwork(self.network.model, 0.0) if assembly.of(Average) else None
            start = now(self.device)
            morph(
                self.network,
                after,
                optimizer=self.part.optimizer,
                operator=assembly.operator,
                depth_operator=assembly.depth_operator,
                momentum=momentum,
            )
            self._morphs[before, after] = now(self.device) - start
            self.network.away = None
        return self._morphs[before, after]

    def cost(self, subnetwork: SubNetwork) -> StepCost:
        """Measure a sub-network, once."""
        if subnetwork not in self.costs:
            self.costs[subnetwork] = self._measured(subnetwork)
        return self.costs[subnetwork]

    def _dense_step(self, size: int) -> float:
        """Seconds of one step of the dense network."""
        batch = self._batch(self.network.dense, size)
        start = now(self.device)
        self.dense.take(*batch)
        return now(self.device) - start

    def _measured(self, subnetwork: SubNetwork) -> StepCost:
        network, batch = self.network, self._batch(subnetwork, self.batch_size)
        whole = subnetwork == network.dense
        step = self.dense if whole else self.part
        if not whole:
            self._go(subnetwork)
        step.take(*batch)  # the optimizer's state is there from here on
        kept = bytes_of(kept_tensors(step.model, step.optimizer))
        peak = self._peak(step, batch, kept)
        average = MomentumNetwork(step.model, 0.999)
        pieces: list[Callable[[], object]] = [
            partial(self.dense.take, *self._batch(network.dense, self.batch_size)),
            partial(step.take, *batch),
            step.update,
            partial(average.update_parameters, step.model),
        ]
        if self.batch_size > 3:  # batch norm needs two images
            pieces.append(partial(step.take, *self._batch(subnetwork, self.batch_size // 2)))
        times = rounds_of(pieces, self.device, self.window)
        self.dense_times += times[0]
        price = cost(network, subnetwork, self.batch_size)
        low, high = (1.0, 1.0) if whole else bounds([a / b for a, b in zip(times[1], times[0], strict=True)])
        return StepCost(
            parameters=price.parameters,
            flops=price.training,
            time=1.0 if whole else _ratio(times[1], times[0]),
            low=low,
            high=high,
            half=_ratio(times[4], times[1]) if len(times) > 4 else None,
            update=_ratio(times[2], times[1]),
            average=_ratio(times[3], times[1]),
            operations=divide(partial(step.backward, *batch), self.device),
            kept=kept,
            activations=peak - kept,
            copy=bytes_of([*average.parameters(), *average.buffers()]),
        )

    def _peak(self, step: Step, batch: tuple[torch.Tensor, Any], kept: int) -> int:
        """Bytes of a step at their most, the batch's own among them."""
        if self.device.type != "cuda":
            with Allocations([*kept_tensors(step.model, step.optimizer), *tree_leaves(batch)]) as allocations:
                step.take(*batch)
            return allocations.peak
        others = torch.cuda.memory_allocated(self.device) - kept - bytes_of(tree_leaves(batch))
        torch.cuda.reset_peak_memory_stats(self.device)
        step.take(*batch)
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - others

    def _go(self, subnetwork: SubNetwork) -> None:
        """Whatever the way; what the weights are does not matter."""
        if subnetwork != self.network.current:
            optimizer = self.part.optimizer
            morph(self.network, subnetwork, optimizer=optimizer, operator="random", depth_operator="random")

    def _batch(self, subnetwork: SubNetwork, size: int) -> tuple[torch.Tensor, Any]:
        images, labels = self.training.images[:size], tree_map(lambda value: value[:size], self.training.labels)
        if subnetwork.resolution not in (None, self.network.dense.resolution):
            shape = (*images.shape[:2], *subnetwork.resolution)
            images = torch.randn(shape, dtype=images.dtype, device=images.device)
        return images, labels


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds: what disturbs a round disturbs both."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Between which the median lies in nine of ten cases, whatever the distribution: two of the values, by their order
    (the binomial distribution, as a normal one); the least and the largest where there are few."""
    ordered = sorted(values)
    outside = max(0, int(len(ordered) / 2 - 0.82 * len(ordered) ** 0.5))
    return ordered[outside], ordered[-1 - outside]

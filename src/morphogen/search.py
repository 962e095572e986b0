"""Which candidate of an elastic supernet to go on with: its loss, its time, and their weighted product.

AutoProg, equation 6: the least L(psi) T(psi)^a, with a fitted on the candidates themselves.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from .elastic import ElasticSupernet
from .errors import ConfigError, TrainingError
from .network import Network
from .subnet import SubNetwork
from .timing import in_turn, now

ROUNDS = 3
"""Timed steps of each candidate, after one that warms up."""


@dataclass(frozen=True)
class Probe:
    """What a search needs of the training loop.

    Attributes:
        loss: the mean loss of a batch, through the model as it is at that moment: `loss(images, labels)`.
        subset: batches of a fixed part of the training data at full resolution, (images, labels) each, augmented as
            in training. It is gone through once in every search; all candidates see the same augmented images.
    """

    loss: Callable[[torch.Tensor, Any], torch.Tensor]
    subset: Iterable[tuple[torch.Tensor, Any]]


@dataclass(frozen=True)
class Candidate:
    """What a search saw of one sub-network.

    Attributes:
        subnetwork: which.
        loss: on the subset; not finite where the candidate was dropped.
        seconds: of a forward and backward pass on one batch, on this device.
        score: loss x seconds ^ exponent; the least one is chosen.
    """

    subnetwork: SubNetwork
    loss: float
    seconds: float
    score: float


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        epoch: before which it was made.
        epochs: for which the supernet was trained.
        candidates: all of them, in the order of the space.
        exponent: a of the score.
        chosen: the number of the one that goes on.
        seconds: what measuring them took.
    """

    epoch: int
    epochs: int
    candidates: tuple[Candidate, ...]
    exponent: float
    chosen: int
    seconds: float

    @property
    def subnetwork(self) -> SubNetwork:
        """The sub-network that goes on."""
        return self.candidates[self.chosen].subnetwork

    def record(self) -> dict[str, Any]:
        """A dictionary of JSON types; a loss that is not finite is None."""
        return {
            "epoch": self.epoch,
            "epochs": self.epochs,
            "exponent": self.exponent,
            "chosen": self.chosen,
            "seconds": self.seconds,
            "candidates": [
                {
                    "blocks": sum(map(len, c.subnetwork.blocks.values())),
                    "resolution": c.subnetwork.resolution,
                    "loss": c.loss if math.isfinite(c.loss) else None,
                    "seconds": c.seconds,
                    "score": c.score if math.isfinite(c.score) else None,
                    "subnetwork": c.subnetwork.to_dict(),
                }
                for c in self.candidates
            ],
        }


def fit_exponent(losses: Sequence[float], seconds: Sequence[float]) -> float:
    """a of loss = c T^-a, by least squares on the logarithms: how much of its loss a candidate owes to its time.

    0 where larger candidates are no better, so that the loss alone decides.
    """
    x, y = [math.log(t) for t in seconds], [math.log(loss) for loss in losses]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((t - mean_x) ** 2 for t in x)
    if spread < 1e-12:
        return 0.0
    return max(0.0, -sum((t - mean_x) * (loss - mean_y) for t, loss in zip(x, y, strict=True)) / spread)


def choose(losses: Sequence[float], seconds: Sequence[float]) -> tuple[float, list[float], int]:
    """The exponent, every candidate's score, and the number of the best; of equals the faster one.

    A loss that is not finite drops its candidate.

    Raises:
        TrainingError: no loss is finite.
        ConfigError: a loss is not above 0, so that its product with time means nothing.
    """
    finite = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
    if not finite:
        raise TrainingError("no candidate has a finite loss", todo="Lower the learning rate")
    if min(losses[i] for i in finite) <= 0:
        raise ConfigError("the search multiplies losses with times", expected="losses above 0", found=f"{min(losses)}")
    exponent = fit_exponent([losses[i] for i in finite], [seconds[i] for i in finite])
    scores = [loss * time**exponent for loss, time in zip(losses, seconds, strict=True)]
    return exponent, scores, min(finite, key=lambda i: (scores[i], seconds[i]))


def search(
    supernet: ElasticSupernet, probe: Probe, epoch: int, epochs: int, resize: Callable[..., torch.Tensor]
) -> Found:
    """Measure all candidates of a supernet and choose one; weights, gradients and random numbers stay as they are.

    With several ranks each measures on its own subset; mean losses and the longest times decide, the same on all.

    Args:
        supernet: trained.
        probe: of the training loop.
        epoch, epochs: for the record, see `Found`.
        resize: images and a resolution to images of that resolution.

    Raises:
        TrainingError: no candidate has a finite loss.
        ConfigError: there is no batch in the subset, or a loss is not above 0.
    """
    network = supernet.network
    device = next(network.model.parameters()).device
    start = now(device)
    with _undisturbed(network):
        losses, seconds = _measured(supernet, probe, device, resize)
    supernet.run_as(None)
    losses, seconds = _agreed(losses, seconds, device)
    for candidate, loss in zip(supernet.candidates, losses, strict=True):
        if not math.isfinite(loss):
            warnings.warn(
                f"search before epoch {epoch}: a candidate's loss is {loss}; it is dropped ({describe(candidate)})",
                stacklevel=2,
            )
    exponent, scores, chosen = choose(losses, seconds)
    candidates = tuple(map(Candidate, supernet.candidates, losses, seconds, scores))
    return Found(epoch, epochs, candidates, exponent, chosen, now(device) - start)


def describe(subnetwork: SubNetwork) -> str:
    """A sub-network in a few words: `9 blocks, 112 x 112`."""
    blocks = sum(map(len, subnetwork.blocks.values()))
    size = "" if subnetwork.resolution is None else " x ".join(map(str, subnetwork.resolution))
    return f"{blocks} blocks" + (f", {size}" if size else "")


def _measured(
    supernet: ElasticSupernet, probe: Probe, device: torch.device, resize: Callable[..., torch.Tensor]
) -> tuple[list[float], list[float]]:
    """Losses, then seconds; the model is in training mode, and as in training but for dropout."""
    network, count = supernet.network, len(supernet.candidates)
    totals, images_seen = torch.zeros(count, dtype=torch.float64), 0
    seconds: list[float] = []

    def loss_of(number: int, images: torch.Tensor, labels: Any) -> torch.Tensor:
        supernet.run_as(number)
        resolution = supernet.candidates[number].resolution
        with supernet.swapped():
            return probe.loss(images if resolution is None else resize(images, resolution), labels)

    for images, labels in probe.subset:
        if not seconds:
            network.model.train()
            seconds = in_turn(
                [lambda i=i: loss_of(i, images, labels).backward() for i in range(count)],  # noqa: B023  (called at once)
                device,
                ROUNDS,
            )
            _without_dropout(network)
        for number in range(count):
            torch.manual_seed(images_seen)  # whatever the loss draws, all candidates draw alike
            with torch.no_grad():
                totals[number] += float(loss_of(number, images, labels)) * len(images)
        images_seen += len(images)
    if not images_seen:
        raise ConfigError("the subset to search on has no batch", expected="at least one (images, labels)")
    return (totals / images_seen).tolist(), seconds


def _agreed(losses: list[float], seconds: list[float], device: torch.device) -> tuple[list[float], list[float]]:
    """The figures that all ranks act on."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return losses, seconds
    mean, longest = (torch.tensor(values, dtype=torch.float64, device=device) for values in (losses, seconds))
    distributed.all_reduce(mean)
    distributed.all_reduce(longest, distributed.ReduceOp.MAX)
    return (mean / distributed.get_world_size()).tolist(), longest.tolist()


def _without_dropout(network: Network) -> None:
    """Stochastic depth would weigh on deep candidates more than on shallow ones."""
    drops = [*network.structure.drop_path, *(d for s in network.stacks for unit in s.drop_path for d in unit)]
    paths = {drop.path for drop in drops}
    for path, module in network.model.named_modules():
        if path in paths or isinstance(module, _DropoutNd):
            module.eval()


@contextmanager
def _undisturbed(network: Network) -> Iterator[None]:
    """Afterwards running statistics, gradients, modes and random numbers are what they were."""
    model = network.model
    modes = [(module, module.training) for module in model.modules()]
    statistics = [b for m in model.modules() if isinstance(m, _NormBase) for b in m.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in statistics]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(statistics, kept, strict=True):
                buffer.copy_(value)
        for parameter, grad in grads:
            parameter.grad = grad
        for module, training in modes:
            module.training = training

"""Which candidate of an elastic supernet to go on with: its loss, its time, and their weighted product.

AutoProg, equation 6: the least L(psi) T(psi)^a, with a fitted on the candidates themselves.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import torch
from torch.nn.modules.dropout import _DropoutNd

from .elastic import ElasticSupernet
from .errors import ConfigError, TrainingError
from .network import Network
from .randomness import own_random
from .ranks import gathered
from .subnet import SubNetwork, contains
from .timing import now

CLOCK = 0.01
"""Times that differ by less (the standard deviation of their logarithms) are equal: the clock is no better."""


@dataclass(frozen=True)
class Probe:
    """What a search needs of the training loop.

    Attributes:
        loss: the mean loss of a batch, through the model as it is at that moment: `loss(images, labels)`.
        subset: batches of a fixed part of the training data at full resolution, (images, labels) each, augmented as
            in training. It is gone through once in every search; all candidates see the same augmented images. With
            several ranks each has its part of every batch.

    Raises:
        ConfigError: a subset without a batch, or a generator, which could be gone through in one search alone.
    """

    loss: Callable[[torch.Tensor, Any], torch.Tensor]
    subset: Iterable[tuple[torch.Tensor, Any]]

    def __post_init__(self) -> None:
        if isinstance(self.subset, Iterator):
            raise ConfigError(
                "the subset to search on can be gone through only once",
                where="Probe",
                expected="a list of batches, or a DataLoader: every search goes through it",
                found=type(self.subset).__name__,
            )
        if not length_hint(self.subset, 1):
            raise _no_batch()


Resize = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]
"""Images and a resolution to images of that resolution."""


@dataclass(frozen=True)
class Candidate:
    """What a search saw of one sub-network.

    Attributes:
        subnetwork: which.
        loss: on the subset; not finite where the candidate was dropped.
        seconds: of a training step, on this device.
        score: loss x seconds ^ exponent.
        error: standard error of the difference between its score and the least one, over the subset's batches.
    """

    subnetwork: SubNetwork
    loss: float
    seconds: float
    score: float
    error: float


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
                    "error": c.error,
                    "subnetwork": c.subnetwork.to_dict(),
                }
                for c in self.candidates
            ],
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Found:
        """The inverse of `record`, but that a loss that is not finite has become NaN."""

        def number(value: float | None) -> float:
            return math.nan if value is None else float(value)

        return Found(
            int(record["epoch"]),
            int(record["epochs"]),
            tuple(
                Candidate(
                    SubNetwork.from_dict(c["subnetwork"]),
                    number(c["loss"]),
                    number(c["seconds"]),
                    number(c["score"]),
                    number(c["error"]),
                )
                for c in record["candidates"]
            ),
            float(record["exponent"]),
            int(record["chosen"]),
            float(record["seconds"]),
        )


def fit_exponent(losses: Sequence[float], seconds: Sequence[float]) -> float:
    """a of loss = c T^-a, by least squares on the logarithms: how much of its loss a candidate owes to its time.

    0 where larger candidates are no better, or take no longer, so that the loss alone decides.
    """
    x, y = [math.log(t) for t in seconds], [math.log(loss) for loss in losses]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((t - mean_x) ** 2 for t in x)
    if spread < len(x) * CLOCK**2:
        return 0.0
    return max(0.0, -sum((t - mean_x) * (loss - mean_y) for t, loss in zip(x, y, strict=True)) / spread)


def choose(losses: Sequence[float], seconds: Sequence[float]) -> tuple[float, list[float], int]:
    """The exponent, every candidate's score, and the number of the best; of equals (to nine digits) the faster one.

    A loss that is not finite drops its candidate. Of two candidates the loss alone decides.

    Raises:
        TrainingError: no loss is finite, or one is not above 0, so that its product with time means nothing.
    """
    finite = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
    if not finite:
        raise TrainingError("no candidate has a finite loss", todo="Lower the learning rate")
    least = min(losses[i] for i in finite)
    if least <= 0:
        raise TrainingError("a search multiplies losses with times", expected="losses above 0", found=f"{least}")
    # Two lie on a line whatever they are.
    exponent = fit_exponent([losses[i] for i in finite], [seconds[i] for i in finite]) if len(finite) > 2 else 0.0
    scores = [loss * time**exponent for loss, time in zip(losses, seconds, strict=True)]
    logarithms = {i: round(math.log(losses[i]) + exponent * math.log(seconds[i]), 9) for i in finite}
    return exponent, scores, min(finite, key=lambda i: (logarithms[i], seconds[i]))


def standard_errors(scores: Sequence[Sequence[float]], best: int) -> list[float]:
    """For each candidate, of the mean difference between its scores and the best one's on the same batches.

    Args:
        scores: for each candidate, of every batch.
        best: number of the candidate to compare with.

    Returns:
        0 where there is one batch alone, so that nothing is known of the error.
    """
    errors = []
    for own in scores:
        differences = [mine - theirs for mine, theirs in zip(own, scores[best], strict=True)]
        many = len(differences) > 1 and all(map(math.isfinite, differences))
        errors.append(statistics.stdev(differences) / math.sqrt(len(differences)) if many else 0.0)
    return errors


def search(
    supernet: ElasticSupernet,
    probe: Probe,
    seconds: Mapping[int, float],
    resize: Resize,
    epoch: int,
    epochs: int,
    usual: SubNetwork | None = None,
) -> Found:
    """Measure all candidates of a supernet and choose one; weights, gradients and random numbers stay as they are.

    Of those whose score is within one standard error of the least, the fastest goes on that has all of `usual`; where
    none has, the fastest. With several ranks each measures on its own subset; of each batch the mean loss over the
    ranks counts, and of each candidate the longest time, so that all decide the same.

    Args:
        supernet: trained.
        probe: of the training loop.
        seconds: of a training step of each candidate, by its number.
        resize: for the images.
        epoch, epochs: for the record, see `Found`.
        usual: what would train without a search.

    Raises:
        TrainingError: no candidate has a finite loss.
        ConfigError: a candidate was never trained, there is no batch in the subset, a loss is not one number above 0,
            or the ranks' subsets differ in length.
    """
    device = next(supernet.network.model.parameters()).device
    start = now(device)
    if len(seconds) < len(supernet.candidates):
        raise ConfigError(
            "a search needs a step of every candidate",
            expected=f"{len(supernet.candidates)} steps or more, each between run.begin_step and run.end_step",
            found=f"steps of {len(seconds)} candidates",
        )
    try:
        with _undisturbed(supernet.network, device):
            losses = _losses(supernet, probe, resize)
    finally:
        supernet.run_as(None)
    losses, times = _agreed(losses, [seconds[number] for number in range(len(seconds))])
    means = [statistics.fmean(of_candidate) for of_candidate in losses]
    for candidate, loss in zip(supernet.candidates, means, strict=True):
        if not math.isfinite(loss):
            warnings.warn(
                f"search before epoch {epoch}: a candidate's loss is {loss}; it is dropped ({describe(candidate)})",
                stacklevel=2,
            )
    exponent, scores, best = choose(means, times)
    each = [[loss * time**exponent for loss in own] for own, time in zip(losses, times, strict=True)]
    errors = standard_errors(each, best)
    alike = [i for i, score in enumerate(scores) if math.isfinite(score) and score - scores[best] <= errors[i]]
    as_usual = [i for i in alike if usual is None or contains(supernet.candidates[i], usual)]
    chosen = min(as_usual or alike, key=lambda i: times[i])
    candidates = tuple(map(Candidate, supernet.candidates, means, times, scores, errors))
    return Found(epoch, epochs, candidates, exponent, chosen, now(device) - start)


def describe(subnetwork: SubNetwork) -> str:
    """A sub-network in a few words: `9 blocks, 112 x 112`."""
    blocks = sum(map(len, subnetwork.blocks.values()))
    size = "" if subnetwork.resolution is None else " x ".join(map(str, subnetwork.resolution))
    return f"{blocks} blocks" + (f", {size}" if size else "")


def _losses(supernet: ElasticSupernet, probe: Probe, resize: Resize) -> list[list[float]]:
    """For each candidate its loss on every batch, in training mode but without dropout."""
    losses: list[list[float]] = [[] for _ in supernet.candidates]
    supernet.network.model.train()
    _without_dropout(supernet.network)
    _seed(0)
    for batch, (images, labels) in enumerate(probe.subset):
        for number, candidate in enumerate(supernet.candidates):
            supernet.run_as(number)
            sized = images if candidate.resolution is None else resize(images, candidate.resolution)
            _seed(batch)  # whatever the loss draws, all candidates draw alike
            with torch.no_grad():
                losses[number].append(_number(probe.loss(sized, labels)))
        _seed(batch)  # and the next batch is augmented as in every search
    if not losses[0]:
        raise _no_batch()
    return losses


def _agreed(losses: list[list[float]], seconds: list[float]) -> tuple[list[list[float]], list[float]]:
    """The figures that all ranks act on: of each batch the mean over the ranks, and the longest times."""
    of_ranks = gathered((losses, seconds))
    batches = [len(own[0]) for own, _ in of_ranks]
    if len({*batches}) > 1:
        raise ConfigError(
            "the ranks search on subsets of different length",
            where="Probe",
            expected="as many batches on each",
            found=f"{', '.join(map(str, batches))} batches",
        )
    candidates = zip(*(own for own, _ in of_ranks), strict=True)
    of_all = [[statistics.fmean(parts) for parts in zip(*own, strict=True)] for own in candidates]
    return of_all, [max(times) for times in zip(*(own for _, own in of_ranks), strict=True)]


def _without_dropout(network: Network) -> None:
    """Stochastic depth would weigh on deep candidates more than on shallow ones."""
    drops = [*network.structure.drop_path, *(d for s in network.stacks for unit in s.drop_path for d in unit)]
    paths = {drop.path for drop in drops}
    for path, module in network.model.named_modules():
        if path in paths or isinstance(module, _DropoutNd):
            module.eval()


def _number(loss: Any) -> float:
    try:
        return float(loss)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "the probe's loss cannot be used",
            where="Probe",
            expected="the mean loss of a batch, a tensor of one number",
            found=f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__,
        ) from error


def _no_batch() -> ConfigError:
    return ConfigError("the subset to search on has no batch", where="Probe", expected="at least one (images, labels)")


def _seed(seed: int) -> None:
    """PyTorch's random numbers, Python's, and NumPy's where it is in use (timm mixes tokens by them)."""
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)


@contextmanager
def _undisturbed(network: Network, device: torch.device) -> Iterator[None]:
    """Afterwards buffers (running statistics), gradients, modes and random numbers are what they were."""
    model = network.model
    modes = [(module, module.training) for module in model.modules()]
    places = [(module._buffers, name) for module in model.modules() for name in module._buffers]
    buffers = [(place, name, b, None if b is None else b.clone()) for place, name in places for b in [place[name]]]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with own_random(device):
            yield
    finally:
        for place, name, buffer, value in buffers:
            place[name] = buffer
            if buffer is not None and value is not None and not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)
        for parameter, grad in grads:
            parameter.grad = grad
        for module, training in modes:
            module.training = training

"""The candidates of an elastic supernet, compared on one subset while nothing trains."""

from __future__ import annotations

import math
import random
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..dense.network import Network
from ..dense.subnet import SubNetwork, contains
from ..errors import ConfigError
from ..machine.private import DropoutBase
from ..machine.randomness import own_random
from ..machine.ranks import gathered
from ..machine.timing import now
from .candidates import Candidate, Found, Probe, Resize, describe, no_batch
from .score import choose, standard_errors
from .supernet import ElasticSupernet


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
        raise no_batch()
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
        if path in paths or isinstance(module, DropoutBase):
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

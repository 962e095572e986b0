"""The candidates of an elastic supernet, compared on one subset while nothing trains."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..dense.subnet import SubNetwork, contains
from ..errors import ConfigError
from ..machine.averages import averaged_and_copied, put
from ..machine.ranks import gathered
from .candidates import Candidate, Found, Probe, Resize, describe, no_batch
from .fit import fit_losses
from .score import choose, standard_errors
from .supernet import ElasticSupernet
from .undisturbed import as_number, seed, undisturbed, without_dropout

Losses = list[list[float]]
"""Of each candidate on every batch of the subset."""


def measured(supernet: ElasticSupernet, probe: Probe, resize: Resize, average: nn.Module | None = None) -> Losses:
    """The losses of all candidates; weights, gradients and random numbers stay as they are.

    Args:
        supernet: as it is between two steps.
        probe: of the training loop.
        resize: for the images.
        average: a copy of the model whose parameters and running statistics are measured in place of its own.

    Raises:
        ConfigError: there is no batch in the subset, or a loss is not one number.
    """
    network = supernet.network
    try:
        with undisturbed(network, next(network.model.parameters()).device), _averaged(network.model, average):
            return _losses(supernet, probe, resize)
    finally:
        supernet.run_as(None)


def search(
    supernet: ElasticSupernet,
    probes: Sequence[Losses],
    seconds: Mapping[int, float],
    epoch: int,
    epochs: int,
    usual: SubNetwork | None = None,
    fitted: bool = True,
) -> Found:
    """Choose one of the candidates by what was measured of them.

    Of those whose score is within one standard error of the least, the fastest goes on that has all of `usual`; where
    none has, the fastest. With several ranks each measures on its own subset; of each batch the mean loss over the
    ranks counts, and of each candidate the longest time, so that all decide the same.

    Args:
        supernet: trained.
        probes: losses at several moments of its training, which are averaged.
        seconds: of a training step of each candidate, by its number.
        epoch, epochs: for the record, see `Found`.
        usual: what would train without a search.
        fitted: score the losses that a model of all of them gives, see `fit_losses`, with its standard errors;
            otherwise each by itself, with those over the subset's batches.

    Raises:
        TrainingError: no candidate has a finite loss, or one is not above 0.
        ConfigError: a candidate was never trained, or the subset's length differs between probes or ranks.
    """
    if len(seconds) < len(supernet.candidates):
        raise ConfigError(
            "a search needs a step of every candidate",
            expected=f"{len(supernet.candidates)} steps or more, each between run.begin_step and run.end_step",
            found=f"steps of {len(seconds)} candidates",
        )
    losses, times = _agreed(_mean_of(probes), [seconds[number] for number in range(len(seconds))])
    means = [statistics.fmean(of_candidate) for of_candidate in losses]
    for candidate, loss in zip(supernet.candidates, means, strict=True):
        if not math.isfinite(loss):
            warnings.warn(
                f"search before epoch {epoch}: a candidate's loss is {loss}; it is dropped ({describe(candidate)})",
                stacklevel=2,
            )
    smooth, between = _smoothed(supernet.candidates, means) if fitted else (means, None)
    exponent, scores, best = choose(smooth, times)
    if between is None:
        each = [[loss * time**exponent for loss in own] for own, time in zip(losses, times, strict=True)]
        errors = standard_errors(each, best)
    else:
        errors = [scores[best] * math.expm1(error) for error in between[best]]
    alike = [i for i, score in enumerate(scores) if math.isfinite(score) and score - scores[best] <= errors[i]]
    as_usual = [i for i in alike if usual is None or contains(supernet.candidates[i], usual)]
    chosen = min(as_usual or alike, key=lambda i: times[i])
    candidates = tuple(map(Candidate, supernet.candidates, means, smooth, times, scores, errors))
    return Found(epoch, epochs, candidates, exponent, chosen)


def _smoothed(candidates: Sequence[SubNetwork], losses: list[float]) -> tuple[list[float], list[list[float]] | None]:
    """Losses by the model of all that are finite, and their standard errors; as they are where none can be fitted."""
    finite = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
    if not finite or min(losses[i] for i in finite) <= 0:
        return losses, None
    fit = fit_losses([candidates[i] for i in finite], [losses[i] for i in finite])
    if fit is None:
        return losses, None
    smooth, errors = list(losses), [[0.0] * len(losses) for _ in losses]
    for row, i in enumerate(finite):
        smooth[i] = fit.losses[row]
        for column, j in enumerate(finite):
            errors[i][j] = fit.errors[row][column]
    return smooth, errors


def _mean_of(probes: Sequence[Losses]) -> Losses:
    """Of each candidate and batch the mean over the probes."""
    _same_length([len(probe[0]) for probe in probes], "probes")
    return [[statistics.fmean(of_batch) for of_batch in zip(*own, strict=True)] for own in zip(*probes, strict=True)]


def _same_length(batches: Sequence[int], what: str) -> None:
    if len({*batches}) > 1:
        raise ConfigError(
            f"the {what} search on subsets of different length",
            where="Probe",
            expected="as many batches on each",
            found=f"{', '.join(map(str, batches))} batches",
        )


def _losses(supernet: ElasticSupernet, probe: Probe, resize: Resize) -> Losses:
    """For each candidate its loss on every batch, in training mode but without dropout."""
    losses: Losses = [[] for _ in supernet.candidates]
    supernet.network.model.train()
    without_dropout(supernet.network)
    seed(0)
    for batch, (images, labels) in enumerate(probe.subset):
        for number, candidate in enumerate(supernet.candidates):
            supernet.run_as(number)
            sized = images if candidate.resolution is None else resize(images, candidate.resolution)
            seed(batch)  # whatever the loss draws, all candidates draw alike
            with torch.no_grad():
                losses[number].append(as_number(probe.loss(sized, labels)))
        seed(batch)  # and the next batch is augmented as in every search
    if not losses[0]:
        raise no_batch()
    return losses


def _agreed(losses: Losses, seconds: list[float]) -> tuple[Losses, list[float]]:
    """The figures that all ranks act on: of each batch the mean over the ranks, and the longest times."""
    of_ranks = gathered((losses, seconds))
    _same_length([len(own[0]) for own, _ in of_ranks], "ranks")
    candidates = zip(*(own for own, _ in of_ranks), strict=True)
    of_all = [[statistics.fmean(parts) for parts in zip(*own, strict=True)] for own in candidates]
    return of_all, [max(times) for times in zip(*(own for _, own in of_ranks), strict=True)]


@contextmanager
def _averaged(model: nn.Module, average: nn.Module | None) -> Iterator[None]:
    """The model with the average's parameters and running statistics; afterwards with its own, to the last bit."""
    if average is None:
        yield
        return
    (ours, _), (theirs, _) = averaged_and_copied(model), averaged_and_copied(average)
    own = [tensor.clone() for tensor in ours]
    try:
        put(ours, theirs)
        yield
    finally:
        put(ours, own)

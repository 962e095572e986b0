"""Accuracy over training, means over the seeds: epoch by epoch against seconds or FLOPs."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .records import Record
from .savings.shares import images_of


@dataclass(frozen=True)
class Course:
    """Accuracy over a method's training, means over its seeds.

    Attributes:
        costs: at the end of each epoch, seconds or FLOPs.
        mean: of the accuracy, percent.
        spread: its standard deviation; 0 of a single run.
        seeds: how many runs.
    """

    costs: list[float]
    mean: list[float]
    spread: list[float]
    seeds: int


def course(runs: Sequence[Record], cost: str) -> Course:
    """Of one method's runs, epoch by epoch; where one was stopped, as far as all go."""
    costs = [_costs(run, cost) for run in runs]
    accuracies = [[float(epoch["accuracy"]) for epoch in run["epochs"]] for run in runs]
    at = list(zip(*accuracies, strict=False))
    return Course(
        [statistics.fmean(each) for each in zip(*costs, strict=False)],
        [statistics.fmean(each) for each in at],
        [statistics.stdev(each) if len(each) > 1 else 0.0 for each in at],
        len(runs),
    )


def _costs(run: Record, cost: str) -> list[float]:
    if cost == "seconds":
        return [float(epoch["seconds"]) for epoch in run["epochs"]]
    return list(itertools.accumulate(flops_of_epochs(run)))


def flops_of_epochs(run: Record) -> list[float]:
    """Training FLOPs of each epoch: those of its stage are spread evenly over it."""
    stages, epochs = run["stages"], [epoch["epoch"] for epoch in run["epochs"]]
    own = [max((n for n, stage in enumerate(stages) if stage["epoch"] <= epoch), default=0) for epoch in epochs]
    whole = [stage["training_flops"] * images_of(stage) / stage["batch_size"] for stage in stages]
    return [whole[place] / own.count(place) for place in own]

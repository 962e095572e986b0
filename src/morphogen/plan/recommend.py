"""Which method: what each would save here, beside what studies say of its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from ..errors import MorphogenError
from ..machine.private import tree_leaves
from ..methods import build_method
from .planner import Plan, Progress, Supply, plans
from .show import duration
from .steps import Training
from .studies import Kind, Study, kind_of, length_of, studied

CANDIDATES = (
    "GrowOnce",
    "GrowOnce(resolution=0.625)",
    "ProgressiveResizing",
    "EfficientTrain",
    "Prog",
    "Prog(depth_operator='identity')",
    "StackBERT",
    "NetworkExpansion",
    "PruneEarly",
    "PruneTrain(ratio=0.7, interval=3, proximal=True)",
)
"""Methods to choose among."""

LOSES = -0.5
"""Points of accuracy below dense training from which on a method is said to lose some."""

SAVES = 1.05
"""Speedup from which on a method is worth its line."""


@dataclass(frozen=True)
class Candidate:
    """One method.

    Attributes:
        method: as it is written.
        epochs: length of its run: more than the dense one's where its study spent saved time on more epochs.
        speedup: time of dense training by the method's; None where it does not fit or prunes, which tells in training.
        bounds: between which the speedup lies, by the spread of the step times.
        flop_speedup: the same in FLOPs.
        seconds: of the run's training; None where its number of steps is not known.
        memory: bytes at the peak of its largest step by the dense network's.
        study: what was measured of its accuracy on this kind of network; None where nothing was.
        refused: why it does not fit; empty where it does.
    """

    method: str
    epochs: int
    speedup: float | None
    bounds: tuple[float, float] | None
    flop_speedup: float | None
    seconds: float | None
    memory: float | None
    study: Study | None
    refused: str = ""

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.refused:
            return "does not fit"
        if self.speedup is not None and self.speedup < SAVES:
            return "saves nothing here"
        if self.study is None:
            return "accuracy not measured"
        if self.study.gap < LOSES:
            return "loses accuracy"
        return "try it" if self.speedup is not None else "time known in training"


ORDER = (
    "try it",
    "accuracy not measured",
    "time known in training",
    "loses accuracy",
    "saves nothing here",
    "does not fit",
)
"""Best first; within one, the fastest first."""


@dataclass(frozen=True)
class Recommendation:
    """All methods, the best first.

    Attributes:
        kind: of network, by which studies were chosen.
        candidates: in order.
        epochs: length of the dense run.
        notes: what the figures leave out.
    """

    kind: Kind
    candidates: tuple[Candidate, ...]
    epochs: int
    notes: tuple[str, ...]

    @property
    def best(self) -> Candidate | None:
        """The first that saves time and was not seen to lose accuracy; None where none does."""
        first = self.candidates[0] if self.candidates else None
        return first if first is not None and first.verdict in ORDER[:2] else None

    def rows(self) -> list[dict[str, str]]:
        """A table, one row a method that fits."""
        return [
            {
                "method": each.method,
                "epochs": f"{each.epochs}",
                "time": _speedup(each),
                "FLOPs": "" if each.flop_speedup is None else f"{each.flop_speedup:.2f}x",
                "run": "" if each.seconds is None else duration(each.seconds),
                "memory": "" if each.memory is None else f"{each.memory:.2f}",
                "accuracy": "not measured" if each.study is None else str(each.study).partition(" (")[0],
                "verdict": each.verdict,
            }
            for each in self.candidates
            if not each.refused
        ]

    def lines(self) -> list[str]:
        """Where the accuracies were measured, what does not fit and why, and what the figures leave out."""
        told = [f"{each.method}: {each.study}, {each.study.where}" for each in self.candidates if each.study]
        refused = dict[str, list[str]]()
        for each in self.candidates:
            if each.refused:
                refused.setdefault(each.refused, []).append(each.method)
        for reason, names in refused.items():
            told.append(f"{', '.join(names)} {'does' if len(names) == 1 else 'do'} not fit: {reason}")
        if not any(each.study for each in self.candidates):
            told.append(f"no study is about a network of this kind ({self.kind}); compare before you trust a method")
        return [*told, *(f"note: {note}" for note in self.notes)]

    def __str__(self) -> str:
        rows = self.rows()
        widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]} if rows else {}
        table = [widths and {key: key for key in widths}, *rows] if rows else []
        lines = ["  ".join(row[key].ljust(widths[key]) for key in widths).rstrip() for row in table]
        return "\n".join([f"{self.kind}, {self.epochs} epochs", *lines, *self.lines(), *self.loop()])

    def loop(self) -> list[str]:
        """The lines that a loop of one's own needs for the best method; none where dense training is best."""
        if self.best is None:
            return []
        brackets = "" if "(" in self.best.method else "()"
        return [
            "the first one in a loop of your own:",
            f"  method = morphogen.{self.best.method}{brackets}",
            f"  run = morphogen.attach(model, optimizer, method, example=images, epochs={self.best.epochs})",
            "  run.begin_epoch(epoch)  # at the head of every epoch",
        ]


def recommend(
    model: nn.Module,
    images: torch.Tensor,
    *,
    epochs: int,
    labels: Any = None,
    loss: Callable[[nn.Module, torch.Tensor, Any], torch.Tensor] | None = None,
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    steps_per_epoch: int | None = None,
    methods: Sequence[str] = CANDIDATES,
    seconds: float = 120.0,
    exclude: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
) -> Recommendation:
    """Measure what each method would save on this device, and rank them.

        print(morphogen.recommend(model, images, labels=labels, epochs=90, steps_per_epoch=5000))

    Args:
        model: the dense network, on its device; it is changed. Give a copy of the one that you train.
        images: (N, C, H, W), a batch as in training.
        labels: of these images, for the loss. Without them it is the mean of the squared outputs, whose own time is
            next to nothing.
        loss: of a model on images and labels, with what surrounds the forward pass, such as autocast; by default cross
            entropy.
        optimizer: makes one for a model; by default SGD with momentum.
        epochs: length of the dense run; a method's own run may be longer, see `Candidate.epochs`.
        steps_per_epoch: where it is known, tracing and morphs count.
        methods: to choose among, as in `morphogen train --method`.
        seconds: to measure for, all methods together; tracing and morphs come on top.
        exclude: module paths to leave whole.
        progress: told before every sub-network how many are measured, and how many there will be.

    Raises:
        ConfigError: an unknown method, a length below 1.
        TraceError: see `trace`.
    """
    loss = loss or (_squares if labels is None else Training.loss)
    training = Training(images, torch.zeros(len(images)) if labels is None else labels, optimizer or _sgd, loss)
    return recommended(model, methods, training, epochs, steps_per_epoch, None, seconds, exclude, progress)


def recommended(
    model: nn.Module,
    methods: Sequence[str],
    training: Training,
    epochs: int,
    steps_per_epoch: int | None,
    supply: Supply | None,
    seconds: float,
    exclude: Sequence[str],
    progress: Progress = lambda done, total: None,
) -> Recommendation:
    """As `recommend`, for any training step and with the data layer; see `plan`."""
    kind = kind_of(model)
    found = plans(
        model,
        {name: build_method(name) for name in methods},
        training,
        epochs=epochs,
        lengths={name: length_of(kind, name, epochs) for name in methods},
        steps_per_epoch=steps_per_epoch,
        supply=supply,
        seconds=seconds,
        exclude=exclude,
        progress=progress,
        multiples=False,
    )
    return ranked(kind, found, epochs)


def ranked(kind: Kind, found: Mapping[str, Plan | MorphogenError], epochs: int) -> Recommendation:
    """Methods in order, from their plans."""
    candidates = [_candidate(kind, name, plan, epochs) for name, plan in found.items()]
    candidates.sort(key=lambda each: (ORDER.index(each.verdict), -(each.speedup or 0.0)))
    notes = dict.fromkeys(note for plan in found.values() if isinstance(plan, Plan) for note in plan.notes)
    return Recommendation(kind, tuple(candidates), epochs, tuple(notes))


def _candidate(kind: Kind, name: str, plan: Plan | MorphogenError, epochs: int) -> Candidate:
    """From a plan of the method's own length, which counts its savings against dense training of that length."""
    study, length = studied(kind, name, epochs), length_of(kind, name, epochs)
    if isinstance(plan, MorphogenError):
        return Candidate(name, length, None, None, None, None, None, None, str(plan))
    memory = max(stage.memory for run in plan.runs for stage in run.stages) / plan.dense.memory
    if plan.prunes:
        return Candidate(name, length, None, None, None, None, memory, study)
    longer = length / epochs
    slowest = min(plan.runs, key=lambda run: run.prediction.speedup)
    low, high = min(run.bounds[0] for run in plan.runs) / longer, max(run.bounds[1] for run in plan.runs) / longer
    found = slowest.prediction
    speedup, flop_speedup = found.speedup / longer, found.flop_speedup / longer
    return Candidate(name, length, speedup, (low, high), flop_speedup, found.seconds, memory, study)


def _speedup(candidate: Candidate) -> str:
    if candidate.speedup is None or candidate.bounds is None:
        return "known in training"
    low, high = candidate.bounds
    return f"{candidate.speedup:.2f}x ({low:.2f} to {high:.2f})"


def _sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def _squares(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    outputs = [each for each in tree_leaves(model(images)) if isinstance(each, torch.Tensor) and each.requires_grad]
    return torch.stack([output.float().square().mean() for output in outputs]).sum()

"""What a search needs of the training loop, and what it saw of every candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from operator import length_hint
from typing import Any

import torch

from ..dense.subnet import SubNetwork
from ..errors import ConfigError


@dataclass(frozen=True)
class Probe:
    """What a search needs of the training loop.

    Attributes:
        loss: the mean loss of a batch, through the model as it is at that moment: `loss(images, labels)`.
        subset: batches of a fixed part of the training data at full resolution, (images, labels) each, augmented as
            in training. It is gone through several times in every search; all candidates see the same augmented images.
            With several ranks each has its part of every batch.

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
            raise no_batch()


Resize = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]
"""Images and a resolution to images of that resolution."""


@dataclass(frozen=True)
class ZeroCost:
    """What a search without training saw of a candidate, see `search/zero_cost.py`.

    Attributes:
        share: of the layers that are trained, the last ones.
        condition: number of the neural tangent kernel, the geometric mean over batches; low is easy to train.
        zico: high is fast to converge.
        flops: of a training step with one image.
    """

    share: float
    condition: float
    zico: float
    flops: float

    def record(self) -> dict[str, float | None]:
        """A dictionary of JSON types; what is not finite is None."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> ZeroCost:
        """The inverse of `record`, but that what is not finite has become NaN."""
        share, flops = float(record["share"]), float(record["flops"])
        return ZeroCost(share, number(record["condition"]), number(record["zico"]), flops)


def number(value: float | None) -> float:
    """Of a record, where None is what was not finite."""
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Candidate:
    """What a search saw of one sub-network.

    Attributes:
        subnetwork: which.
        loss: on the subset, or what stands for it without training; not finite where the candidate was dropped.
        fitted: the loss that the model of all losses gives it; the same where there is none.
        seconds: of a training step, on this device; 0 where it was not measured.
        score: fitted loss x seconds ^ exponent (without training x share of the largest's FLOPs ^ exponent).
        error: standard error of the difference between its score and the least one.
        zero_cost: what was seen of it without training, in such a search.
    """

    subnetwork: SubNetwork
    loss: float
    fitted: float
    seconds: float
    score: float
    error: float
    zero_cost: ZeroCost | None = None


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
        within_steps: as much of it as was between two steps of the supernet's training.
    """

    epoch: int
    epochs: int
    candidates: tuple[Candidate, ...]
    exponent: float
    chosen: int
    seconds: float = 0.0
    within_steps: float = 0.0

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
            "within_steps": self.within_steps,
            "candidates": [
                {
                    "blocks": sum(map(len, c.subnetwork.blocks.values())),
                    "resolution": c.subnetwork.resolution,
                    "loss": c.loss if math.isfinite(c.loss) else None,
                    "fitted": c.fitted if math.isfinite(c.fitted) else None,
                    "seconds": c.seconds,
                    "score": c.score if math.isfinite(c.score) else None,
                    "error": c.error,
                    "subnetwork": c.subnetwork.to_dict(),
                    **({} if c.zero_cost is None else {"zero_cost": c.zero_cost.record()}),
                }
                for c in self.candidates
            ],
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Found:
        """The inverse of `record`, but that a loss that is not finite has become NaN."""

        return Found(
            int(record["epoch"]),
            int(record["epochs"]),
            tuple(
                Candidate(
                    SubNetwork.from_dict(c["subnetwork"]),
                    number(c["loss"]),
                    number(c["fitted"]),
                    number(c["seconds"]),
                    number(c["score"]),
                    number(c["error"]),
                    ZeroCost.from_record(c["zero_cost"]) if "zero_cost" in c else None,
                )
                for c in record["candidates"]
            ),
            float(record["exponent"]),
            int(record["chosen"]),
            float(record["seconds"]),
            float(record["within_steps"]),
        )


def describe(subnetwork: SubNetwork) -> str:
    """A sub-network in a few words: `9 blocks, 112 x 112`."""
    blocks = sum(map(len, subnetwork.blocks.values()))
    size = "" if subnetwork.resolution is None else " x ".join(map(str, subnetwork.resolution))
    return f"{blocks} blocks" + (f", {size}" if size else "")


def no_batch() -> ConfigError:
    """The error that a subset without a batch is."""
    return ConfigError("the subset to search on has no batch", where="Probe", expected="at least one (images, labels)")

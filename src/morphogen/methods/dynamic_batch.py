"""Larger batches where the sub-network leaves memory free (PruneTrain, SC 2019, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..parts import Batch
from ..run.part import Part
from ..schedule.mini_batch import MiniBatch, Scaling
from .method import Method

MOST_GIB = 2**30
"""A budget that no machine has."""


@dataclass(frozen=True)
class DynamicBatch(Method):
    """Moves the batch and nothing else, so it goes with others: `NetworkExpansion(width=0.5) + DynamicBatch`.

    Attributes:
        budget: GiB of memory of a training step; None is what the dense network needs with the first batch.
        step: images by which the batch grows.
        limit: images that no batch exceeds.
        scaling: of the learning rate with the batch: `linear`, `sqrt`, or `auto` for what suits the optimizer.

    Raises:
        ConfigError: a setting out of range.
    """

    budget: float | None = None
    step: int = 32
    limit: int | None = None
    scaling: Scaling = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.mini_batch  # checks the settings

    @property
    def mini_batch(self) -> MiniBatch:
        """The settings as a policy."""
        if self.budget is not None and not (isinstance(self.budget, (int, float)) and abs(self.budget) < MOST_GIB):
            raise ConfigError(
                "budget out of range", where="DynamicBatch", expected="GiB, a number above 0", found=f"{self.budget!r}"
            )
        budget = None if self.budget is None else int(self.budget * 2**30)
        return MiniBatch(budget, self.step, self.limit, self.scaling)

    def parts(self) -> Sequence[Part]:
        """The batch."""
        return [Batch(self.mini_batch)]

"""The dynamic mini-batch as plain data (PruneTrain, section 4.3): how far a batch may grow where memory is free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

Scaling = Literal["linear", "sqrt"]
"""How the learning rate follows the batch: by its ratio to the first one, or by the square root of it."""


@dataclass(frozen=True)
class MiniBatch:
    """The batch of a sub-network is the largest of first + k x step that fits the budget and the limit.

    Attributes:
        budget: bytes of a training step; None is what the dense network needs with the first batch (Figure 9b:
            "maintain similar device memory utilization").
        step: images by which the batch grows.
        limit: images that no batch exceeds; None leaves it to the budget.
        scaling: of the learning rate; None is linear, and the square root where an optimizer is adaptive.

    Raises:
        ConfigError: a setting out of range.
    """

    budget: int | None = None
    step: int = 32
    limit: int | None = None
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        least = min(1 if value is None else value for value in (self.budget, self.step, self.limit))
        if least < 1:
            raise ConfigError(
                "out of range",
                where="DynamicBatch",
                expected="a budget, a step and a limit above 0",
                found=f"budget {self.budget} bytes, step {self.step}, limit {self.limit}",
            )
        if self.scaling not in (None, "linear", "sqrt"):
            raise ConfigError(
                f"no scaling '{self.scaling}' of the learning rate", where="DynamicBatch", expected="linear or sqrt"
            )

    def size(self, first: int, most: int, fits: Callable[[int], bool]) -> int:
        """Images in a step.

        Args:
            first: of the dense network, and the least.
            most: that there may be, whatever the memory; no less than `first`.
            fits: whether so many fit the budget; if some do, fewer do.
        """
        low, high = 0, (min(most, self.limit or most) - first) // self.step
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(first + middle * self.step) else (low, middle - 1)
        return first + low * self.step

    def lr_scale(self, ratio: float, adaptive: bool) -> float:
        """What the learning rate is multiplied by where the batch is `ratio` times the first one."""
        return ratio**0.5 if (self.scaling or ("sqrt" if adaptive else "linear")) == "sqrt" else ratio

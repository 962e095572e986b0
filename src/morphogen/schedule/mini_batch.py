"""The dynamic mini-batch as plain data (PruneTrain, section 4.3): how far a batch may grow where memory is free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import ConfigError

Scaling = Literal["auto", "linear", "sqrt"]
"""How the learning rate follows the batch: by its ratio to the first one, or by the square root of it."""


@dataclass(frozen=True)
class MiniBatch:
    """The batch of a sub-network is the largest of first + k x step that fits the budget and the limit.

    Attributes:
        budget: bytes of a training step; None is what the dense network needs with the first batch (Figure 9b:
            "maintain similar device memory utilization").
        step: images by which the batch grows.
        limit: images that no batch exceeds; None leaves it to the budget.
        scaling: of the learning rate; `auto` is linear, and the square root where an optimizer is adaptive.

    Raises:
        ConfigError: a setting out of range.
    """

    budget: int | None = None
    step: int = 32
    limit: int | None = None
    scaling: Scaling = "auto"

    def __post_init__(self) -> None:
        given = [value for value in (self.budget, self.step, self.limit) if value is not None]
        if not all(isinstance(value, int) and value > 0 for value in given):
            raise ConfigError(
                "out of range",
                where="DynamicBatch",
                expected="a budget above 0; step and limit whole numbers above 0",
                found=f"budget {self.budget} bytes, step {self.step}, limit {self.limit}",
            )
        if self.scaling not in get_args(Scaling):
            raise ConfigError(
                f"no scaling '{self.scaling}' of the learning rate",
                where="DynamicBatch",
                expected=" or ".join(get_args(Scaling)),
            )

    def size(self, first: int, most: int | None, fits: Callable[[int], bool]) -> int:
        """Images in a step.

        Args:
            first: of the dense network, and the least.
            most: that there may be, whatever the memory; None leaves it to the budget.
            fits: whether so many fit the budget; if some do, fewer do, and too many never do.
        """

        def allowed(steps: int) -> bool:
            images = first + steps * self.step
            return all(top is None or images <= top for top in (most, self.limit)) and fits(images)

        # Every call may cost a second: outwards by doubling, the first time to about twice the first batch.
        low, high = 0, max(1, first // self.step)
        while allowed(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if allowed(middle) else (low, middle)
        return first + low * self.step

    def lr_scale(self, ratio: float, adaptive: bool) -> float:
        """What the learning rate is multiplied by where the batch is `ratio` times the first one."""
        return ratio**0.5 if self.scaling == "sqrt" or (self.scaling == "auto" and adaptive) else ratio


def step_sizes(images: int, size: int, first: int) -> list[int]:
    """Images in each step of an epoch.

    All steps have `size` images but for a last, smaller one of what is left over; it is left out where it has less than
    half of the first batch. So every epoch sees the same images, but for less than half of a first batch.

    Args:
        images: of an epoch, a multiple of `first`.
        size: of a step.
        first: images in a step of the dense network.
    """
    steps, rest = divmod(images, size)
    return [size] * steps + [rest] * (2 * rest >= first)

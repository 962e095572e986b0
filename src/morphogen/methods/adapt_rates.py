"""A learning rate of its own for what enters late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..parts import Rates
from ..run.part import Part
from .method import Method


@dataclass(frozen=True)
class AdaptRates(Method):
    """Changes nothing but the steps of new entries, so it goes with others: `NetworkExpansion(width=0.5) + AdaptRates`.

    What is born at share u0 of the run learns as if the learning rate's schedule had begun then (see `Rates`).

    Attributes:
        most: the largest factor of a step.

    Raises:
        ConfigError: `most` below 1.
    """

    most: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.most < float("inf"):
            raise ConfigError("most out of range", where="AdaptRates", expected="at least 1", found=f"{self.most}")

    def parts(self) -> Sequence[Part]:
        """The steps of what is young."""
        return [Rates(self.most)]

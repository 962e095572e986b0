"""Bytes that data-parallel workers would exchange (PruneTrain, Figure 11): a model, nothing is sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd

WORKERS = (16, 32, 64, 128, 256)
"""The numbers of workers that the paper models."""

NODE = 16
"""Workers that form a group, where their number can be divided by it."""

WORD = 4
"""Bytes of a gradient: float32."""


@dataclass(frozen=True)
class AllReduce:
    """Bytes that each worker sends in one step.

    Attributes:
        inside: to a worker of its own group.
        between: to a worker of another group.
    """

    inside: float
    between: float

    @property
    def total(self) -> float:
        """Both."""
        return self.inside + self.between


def all_reduce(parameters: int, workers: int) -> AllReduce:
    """A hierarchical ring all-reduce of all gradients (after Li et al., MICRO 2018, which PruneTrain models).

    N workers are m groups of g = gcd(N, 16). A ring in each group adds up the gradients, B = 4 P bytes for P
    parameters, and leaves each worker one g-th of the sum (reduce-scatter): g - 1 messages of B / g. The workers of
    all groups with the same part add it up in a ring of their own: 2 (m - 1) messages of B / (g m). The first ring
    then hands the parts round (all-gather): again g - 1 messages of B / g.

        inside = 2 B (g - 1) / g,   between = 2 B (m - 1) / (g m),   together 2 B (N - 1) / N

    Each is proportional to P, so the share that a smaller network saves does not depend on the number of workers.

    Args:
        parameters: of the network, all of them trained.
        workers: at least 1.
    """
    group = gcd(workers, NODE)
    groups = workers // group
    whole = 2 * WORD * parameters
    return AllReduce(whole * (group - 1) / group, whole * (groups - 1) / workers)


def run_bytes(stages: Iterable[tuple[int, int]], workers: int) -> float:
    """Bytes that each worker sends in a run whose stages have so many (parameters, steps)."""
    return sum(all_reduce(parameters, workers).total * steps for parameters, steps in stages)

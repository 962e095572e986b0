"""Speed at equal accuracy, read off complete runs of several lengths.

A *front* is what a method reaches against what it costs: one knot for each length of run, at the mean cost and the
mean accuracy over the seeds. How it is read:

- Accuracy is noisy, so means may fall from one length to the next. They are replaced by the closest ones that never
  fall with cost (isotonic regression, weighted by the number of seeds; Barlow et al., 1972). The running maximum, which
  would do that too, is biased upwards, the more so the more lengths there are.
- Between two knots, accuracy is linear in the logarithm of the cost. What a front costs at an accuracy is the least
  cost at which it gets there, so that a plateau counts from its beginning, for dense as for a method. A front that
  bends is read off a little late between knots that are far apart: choose lengths near where it is read.
- Nothing is extrapolated. Of an accuracy above the last knot is known that it costs more than the last, of one below
  the first that it costs no more than the first: the speedup then has a bound, and no value.

The interval is a bootstrap over seeds: of each method and length, as many runs are drawn with replacement as there are,
fronts and the accuracy to be reached are made of them anew, and the speedup is read off again. With few seeds plain
percentiles are too close to each other, because the spread of n runs is too small by sqrt((n - 1) / n) and has
Student's tails; so percentiles further out are taken, "expanded" as Hesterberg has it (What Teachers Should Know About
the Bootstrap, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError

Cost = Literal["seconds", "flops"]

REPLICATES = 20_000
LEAST_SEEDS = 3
"""With fewer, an interval would be much too short: of two seeds it holds the truth three times in four."""

FULL_LENGTH = 1.0
"""The budget at which the dense network has the accuracy that is to be reached."""


@dataclass(frozen=True)
class Point:
    """One complete run.

    Attributes:
        method: its label; `Dense` is the baseline.
        budget: its length, as a share of the dense network's full one.
        seed: of the run.
        accuracy: on the test images, percent.
        seconds: of training.
        flops: of training.
    """

    method: str
    budget: float
    seed: int
    accuracy: float
    seconds: float
    flops: float


@dataclass(frozen=True)
class Knot:
    """One length of a method's runs.

    Attributes:
        budget: the length, as a share of the dense network's full one.
        seeds: how many runs.
        cost: their mean, seconds or FLOPs.
        accuracy: their mean, percent.
        spread: standard deviation of the accuracy; None of a single run.
        fitted: the accuracy that never falls with cost, percent.
    """

    budget: float
    seeds: int
    cost: float
    accuracy: float
    spread: float | None
    fitted: float


@dataclass(frozen=True)
class Speedup:
    """Dense cost by the method's at one accuracy.

    Attributes:
        method: its label.
        cost: of what.
        below: points below the dense network's full-length accuracy.
        accuracy: the accuracy, percent.
        low, high: between which it lies: equal where it could be read off; 0 and infinity where there is no bound.
        interval: 95 %, of the same kind; None with fewer than three seeds somewhere.
        reached: whether the method gets there.
    """

    method: str
    cost: Cost
    below: float
    accuracy: float
    low: float
    high: float
    interval: tuple[float, float] | None
    reached: bool

    @property
    def value(self) -> float | None:
        """The figure; None where there is only a bound."""
        return self.low if self.low == self.high else None

    def __str__(self) -> str:
        """`1.62x (1.41 to 1.80)`, `> 1.30x`, `not reached: < 0.90x (below 1.02)`."""
        ends = "" if self.interval is None else f" ({_between(*self.interval)})"
        if self.value is not None:
            return f"{self.value:.2f}x{ends}"
        bound = f"< {self.high:.2f}x" if self.high < math.inf else f"> {self.low:.2f}x" if self.low else "no bound"
        return f"{'' if self.reached else 'not reached: '}{bound}{ends}"

    def to_dict(self) -> dict[str, Any]:
        """JSON types; a bound that is not there is None."""
        entries = asdict(self) | {"value": self.value, "low": self.low or None, "high": _finite(self.high)}
        return entries | {"interval": self.interval and [self.interval[0] or None, _finite(self.interval[1])]}


def front(points: Sequence[Point], method: str, cost: Cost) -> list[Knot]:
    """The knots of a method, the cheapest first."""
    runs = _runs(points, method)
    knots = []
    for mean, fitted, k in zip(*(each[0].tolist() for each in _fronts(runs, cost)), strict=True):
        budget, of_length = list(runs.items())[k]
        reached = [run.accuracy for run in of_length]
        spread = stdev(reached) if len(reached) > 1 else None
        knots.append(Knot(budget, len(reached), mean, fmean(reached), spread, fitted))
    return knots


def speedups_at_equal_accuracy(
    points: Sequence[Point], dense: str = "Dense", below: Sequence[float] = (0.0, 1.0), seed: int = 0
) -> list[Speedup]:
    """The headline: of every method, in time and in FLOPs, at each accuracy.

    Args:
        points: all finished runs.
        dense: the baseline's label; it has runs of full length.
        below: points below the dense network's full-length accuracy, as fitted, at which speedups are read off.
        seed: of the bootstrap.

    Raises:
        ConfigError: there is no dense run of full length.
    """
    theirs = _runs(points, dense)
    if FULL_LENGTH not in theirs:
        raise ConfigError("nothing to compare with", where=dense, expected=f"runs of budget {FULL_LENGTH:g}")
    methods = [method for method in dict.fromkeys(point.method for point in points) if method != dense]
    costs: tuple[Cost, ...] = ("seconds", "flops")
    return [
        _speedup(_runs(points, method), theirs, method, cost, points_below, seed)
        for method in methods
        for points_below in below
        for cost in costs
    ]


def isotonic(values: Tensor, weights: Tensor) -> Tensor:
    """The closest values, in weighted squares, that never fall along the last axis: of each row.

    By the min-max formula (Barlow et al., 1972): the largest, over all beginnings a up to i, of the least, over all
    ends b from i on, of the mean from a to b.
    """
    length = values.shape[-1]
    sums = (values * weights).cumsum(-1), weights.cumsum(-1)
    before = [torch.cat([torch.zeros_like(each[..., :1]), each[..., :-1]], -1) for each in sums]
    whole, weight = (each.unsqueeze(-2) - start.unsqueeze(-1) for each, start in zip(sums, before, strict=True))
    above = torch.ones(length, length).tril(-1).bool()  # row a, column b or i: what begins behind it
    least = (whole / weight).masked_fill(above, math.inf).flip(-1).cummin(-1).values.flip(-1)
    return least.masked_fill(above, -math.inf).amax(-2)


def cost_at(costs: Tensor, fitted: Tensor, accuracy: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the least cost at which a front reaches an accuracy; equal where it lies on the front.

    Args:
        costs: (rows, knots), ascending.
        fitted: (rows, knots), never falling.
        accuracy: (rows,).
    """
    last = costs.shape[1] - 1
    after = (fitted < accuracy[:, None]).sum(1)  # the first knot that reaches it
    right, left = after.clamp(max=last)[:, None], (after - 1).clamp(min=0)[:, None]
    (low, high), (x0, x1) = ([each.gather(1, i)[:, 0] for i in (left, right)] for each in (fitted, costs.log()))
    share = (accuracy - low) / (high - low).where(high > low, torch.ones_like(high))
    read = (x0 + share * (x1 - x0)).exp()
    read = read.where(fitted[:, 0] != accuracy, costs[:, 0])
    less, more = fitted[:, 0] > accuracy, fitted[:, -1] < accuracy
    lower = read.masked_fill(less, 0.0).where(~more, costs[:, -1])
    return lower, read.where(~less, costs[:, 0]).masked_fill(more, math.inf)


Runs = dict[float, list[Point]]
"""The runs of a method by their budget, ascending."""


def _speedup(ours: Runs, theirs: Runs, method: str, cost: Cost, below: float, seed: int) -> Speedup:
    low, high, accuracy, reached = _read(ours, theirs, cost, below)
    interval = None
    seeds = min(len(runs) for side in (ours, theirs) for runs in side.values())
    if seeds >= LEAST_SEEDS:
        generator = torch.Generator().manual_seed(seed)
        lows, highs, *_ = _read(ours, theirs, cost, below, generator)
        out = math.floor(_tail(seeds) * REPLICATES)
        interval = float(lows.sort().values[out]), float(highs.sort().values[-1 - out])
    return Speedup(method, cost, below, float(accuracy[0]), float(low[0]), float(high[0]), interval, bool(reached[0]))


def _read(
    ours: Runs, theirs: Runs, cost: Cost, below: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bounds of the speedup, the accuracy, and whether the method reaches it: of the means, or of every replicate."""
    costs, fitted, order = _fronts(theirs, cost, generator)
    full_length = (order == list(theirs).index(FULL_LENGTH)).long().argmax(1, keepdim=True)
    accuracy = fitted.gather(1, full_length)[:, 0] - below
    dense_low, dense_high = cost_at(costs, fitted, accuracy)
    low, high = cost_at(*_fronts(ours, cost, generator)[:2], accuracy)
    return dense_low / high, dense_high / low, accuracy, high < math.inf


def _fronts(runs: Runs, cost: Cost, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Costs, ascending, accuracies fitted to them, and the number of each length: (1 or replicates, lengths)."""
    costs, accuracies = _means(runs, cost, generator)
    order = costs.argsort(1)
    counts = torch.tensor([len(of_length) for of_length in runs.values()], dtype=torch.float64)
    return costs.gather(1, order), isotonic(accuracies.gather(1, order), counts[order]), order


def _means(runs: Runs, cost: Cost, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Mean cost and mean accuracy of each length: (1, lengths), or (replicates, lengths) of seeds drawn anew."""
    columns = []
    for of_length in runs.values():
        values = torch.tensor([[getattr(run, cost), run.accuracy] for run in of_length], dtype=torch.float64)
        drawn = torch.arange(len(values))[None]
        if generator is not None:
            drawn = torch.randint(len(values), (REPLICATES, len(values)), generator=generator)
        columns.append(values[drawn].mean(1))
    both = torch.stack(columns, 1)
    return both[..., 0], both[..., 1]


def _runs(points: Sequence[Point], method: str) -> Runs:
    runs: Runs = {}
    for point in points:
        if point.method == method:
            runs.setdefault(point.budget, []).append(point)
    return dict(sorted(runs.items()))


def _tail(seeds: int) -> float:
    """The share of replicates on each side of a 95 % interval, of so many seeds.

    Student's quantile by Abramowitz and Stegun, 26.7.5.
    """
    z, freedom = NormalDist().inv_cdf(0.975), seeds - 1
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    student += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return NormalDist().cdf(-math.sqrt(seeds / freedom) * student)


def _between(low: float, high: float) -> str:
    if low > 0:
        return f"{low:.2f} to {high:.2f}" if high < math.inf else f"above {low:.2f}"
    return f"below {high:.2f}" if high < math.inf else "no bound"


def _finite(value: float) -> float | None:
    return value if value < math.inf else None

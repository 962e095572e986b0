"""Which candidate is best, of its loss and its time: AutoProg, equation 6.

The least L(psi) T(psi)^a, with a fitted on the candidates themselves.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ..errors import TrainingError

CLOCK = 0.01
"""Times that differ by less (the standard deviation of their logarithms) are equal: the clock is no better."""


def fit_exponent(losses: Sequence[float], seconds: Sequence[float]) -> float:
    """a of loss = c T^-a, by least squares on the logarithms: how much of its loss a candidate owes to its time.

    0 where larger candidates are no better, or take no longer, so that the loss alone decides.
    """
    x, y = [math.log(t) for t in seconds], [math.log(loss) for loss in losses]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((t - mean_x) ** 2 for t in x)
    if spread < len(x) * CLOCK**2:
        return 0.0
    return max(0.0, -sum((t - mean_x) * (loss - mean_y) for t, loss in zip(x, y, strict=True)) / spread)


def choose(losses: Sequence[float], seconds: Sequence[float]) -> tuple[float, list[float], int]:
    """The exponent, every candidate's score, and the number of the best; of equals (to nine digits) the faster one.

    A loss that is not finite drops its candidate. Of two candidates the loss alone decides.

    Raises:
        TrainingError: no loss is finite, or one is not above 0, so that its product with time means nothing.
    """
    finite = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
    if not finite:
        raise TrainingError("no candidate has a finite loss", todo="Lower the learning rate")
    least = min(losses[i] for i in finite)
    if least <= 0:
        raise TrainingError("a search multiplies losses with times", expected="losses above 0", found=f"{least}")
    # Two lie on a line whatever they are.
    exponent = fit_exponent([losses[i] for i in finite], [seconds[i] for i in finite]) if len(finite) > 2 else 0.0
    scores = [loss * time**exponent for loss, time in zip(losses, seconds, strict=True)]
    logarithms = {i: round(math.log(losses[i]) + exponent * math.log(seconds[i]), 9) for i in finite}
    return exponent, scores, min(finite, key=lambda i: (logarithms[i], seconds[i]))


def standard_errors(scores: Sequence[Sequence[float]], best: int) -> list[float]:
    """For each candidate, of the mean difference between its scores and the best one's on the same batches.

    Args:
        scores: for each candidate, of every batch.
        best: number of the candidate to compare with.

    Returns:
        0 where there is one batch alone, so that nothing is known of the error.
    """
    errors = []
    for own in scores:
        differences = [mine - theirs for mine, theirs in zip(own, scores[best], strict=True)]
        many = len(differences) > 1 and all(map(math.isfinite, differences))
        errors.append(statistics.stdev(differences) / math.sqrt(len(differences)) if many else 0.0)
    return errors

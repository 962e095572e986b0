"""A model of the candidates' losses, so that each is judged by all of them.

log loss = a + b log depth + c log tokens (and d log width, where width is a dimension), by least squares on all
candidates at once. After a few steps of supernet training losses differ by less than their noise; the three parameters
of nine losses do not. As nothing in the model interacts, the best score is at an end of each dimension, as in the
schedules that AutoProg found (supplement, Table VII: all blocks, few tokens).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..dense.subnet import SubNetwork
from ..machine.placement import on_cpu


@dataclass(frozen=True)
class Fit:
    """Losses as the model has them.

    Attributes:
        losses: of each candidate.
        errors: for each two candidates the standard error of the difference between their log losses.
    """

    losses: list[float]
    errors: list[list[float]]


@on_cpu
def fit_losses(candidates: Sequence[SubNetwork], losses: Sequence[float]) -> Fit | None:
    """Fit the model to finite losses above 0.

    Returns:
        None where the candidates are no more than the parameters, so that a fit would leave them as they are.
    """
    features = torch.tensor([_features(candidate) for candidate in candidates], dtype=torch.float64).log()
    features = torch.cat([torch.ones(len(candidates), 1), features - features.mean(0)], 1)
    hat = features @ torch.linalg.pinv(features, rtol=1e-9)
    spare = len(candidates) - round(float(hat.trace()))
    if not spare:
        return None
    measured = torch.tensor(losses, dtype=torch.float64).log()
    fitted = hat @ measured
    variance = (measured - fitted).square().sum() / spare
    own = hat.diagonal()
    between = (own[:, None] + own[None, :] - 2 * hat).clamp(min=0) * variance
    return Fit(fitted.exp().tolist(), between.sqrt().tolist())


def _features(candidate: SubNetwork) -> tuple[float, float, float]:
    """Blocks, tokens and channels; where there are none, or they are the same for all, they explain nothing."""
    blocks = sum(map(len, candidate.blocks.values()))
    channels = sum(map(len, candidate.channels.values()))
    return max(1, blocks), 1 if candidate.resolution is None else math.prod(candidate.resolution), max(1, channels)

"""Adaptive Regularisation (AutoProg, section 5.3; supplement, Table I): weak for small networks, full for the dense."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from ..errors import ConfigError
from .linear import equal_starts, linear_ratios
from .stages import Regularisation


def check_adaptive(adaptive: Sequence[float], who: str) -> None:
    """Refuse anything but three shares; raises ConfigError."""
    if len(adaptive) != 3 or not all(isinstance(s, Real) and 0 <= s <= 1 for s in adaptive):
        raise ConfigError("adaptive out of range", where=who, expected="three shares from 0 to 1", found=f"{adaptive}")


def adaptive_regularisation(adaptive: Sequence[float], stages: int, epoch: int, epochs: int) -> Regularisation:
    """Shares of RandAugment's magnitude, random erasing and stochastic depth, from `adaptive` linearly to 1.

    Args:
        adaptive: the shares in the first stage.
        stages: number of stages of equal length.
        epoch: counted from 0.
        epochs: length of the run.
    """
    stage = sum(start <= epoch for start in equal_starts(epochs, stages)) - 1
    return Regularisation(*(linear_ratios(share, stages)[stage] for share in adaptive))

"""Schedules as pure functions of progress."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError

MOST_STAGES = 10_000
"""More than any run has epochs; a list of as many as a mistyped figure says might not fit into memory."""


def _check(stages: int) -> None:
    if stages > MOST_STAGES:
        raise ConfigError("stages out of range", expected=f"at most {MOST_STAGES}", found=f"{stages}")


def linear_ratios(initial: float, stages: int) -> list[float]:
    """alpha_i = alpha_0 + i (1 - alpha_0) / (n_g - 1) for each stage i (Network Expansion, equation 1).

    One stage is the full network from the start.

    Raises:
        ConfigError: more stages than any run has.
    """
    _check(stages)
    if stages == 1:
        return [1.0]
    return [initial + i * (1 - initial) / (stages - 1) for i in range(stages)]


def equal_starts(epochs: int, stages: int) -> list[int]:
    """The first epoch of each of `stages` stages of equal length.

    Epoch e is in stage floor(e n_g / T); where `stages` does not divide `epochs`, lengths differ by one.

    Raises:
        ConfigError: more stages than any run has.
    """
    _check(stages)
    return [-(-stage * epochs // stages) for stage in range(stages)]


def starts_by_ratio(epochs: int, parts: Sequence[float]) -> list[int]:
    """The first epoch of each stage where stages last as `parts` are to each other (1 : 2 : 5)."""
    total, done, starts = sum(parts), 0.0, []
    for part in parts:
        starts.append(int(epochs * done / total + 0.5))
        done += part
    return starts

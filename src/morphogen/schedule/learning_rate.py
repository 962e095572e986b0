"""The learning rate as a pure function of progress, so that an epoch may begin again and a batch may change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..errors import ConfigError
from ..spec import build

BEGIN = 1e-3
"""Share of the peak at which a warm-up begins."""

Shape = Callable[[float], float]
"""From the progress behind the warm-up, in [0, 1], to the learning rate as a share of its peak."""


def cosine() -> Shape:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter, SGDR, ICLR 2017)."""
    return lambda progress: (1 + math.cos(math.pi * progress)) / 2


def wsd(decay: float = 0.35) -> Shape:
    """Warm-up, stable, decay: flat, then for the last `decay` of it linear to 0 (Hu et al., MiniCPM, 2024).

    What grows before the decay learns at the full rate.

    Raises:
        ConfigError: `decay` outside (0, 1].
    """
    if not 0 < decay <= 1:
        raise ConfigError("decay out of range", where="wsd", expected="0 < decay <= 1", found=f"{decay}")
    return lambda progress: min(1.0, (1 - progress) / decay)


def linear() -> Shape:
    """A straight line from 1 to 0."""
    return wsd(1.0)


def poly(power: float = 0.9) -> Shape:
    """(1 - progress)^power, as in semantic segmentation (DeepLab; Network Expansion, section 4.3).

    Raises:
        ConfigError: `power` that is not above 0.
    """
    if not 0 < power < math.inf:
        raise ConfigError("power out of range", where="poly", expected="above 0", found=f"{power}")
    return lambda progress: max(0.0, 1 - progress) ** power


def milestones(at: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> Shape:
    """Steps: times `factor` at each of these shares of the run.

    Raises:
        ConfigError: shares outside (0, 1), or a factor outside (0, 1).
    """
    if not (all(isinstance(share, (int, float)) and 0 < share < 1 for share in at) and 0 < factor < 1):
        raise ConfigError(
            "out of range",
            where="milestones",
            expected="shares of the run between 0 and 1, and a factor between 0 and 1",
            found=f"at {at}, factor {factor}",
        )
    return lambda progress: factor ** sum(share <= progress for share in at)


SHAPES: dict[str, Callable[..., Shape]] = {made.__name__: made for made in (cosine, wsd, linear, poly, milestones)}


def shape_named(text: str) -> Shape:
    """The shape that `wsd(decay=0.3)` names.

    Raises:
        ConfigError: an unknown name or setting, or one out of range.
    """
    return build(text, SHAPES, "shape of the learning rate")


def share_of_peak(shape: Shape, done: float, total: float, warmup: float) -> float:
    """The learning rate as a share of its peak: a linear warm-up, then the shape.

    Args:
        shape: see `Shape`.
        done: how much of the run is over.
        total: the whole run, in the same unit.
        warmup: the part of it in which the rate rises.
    """
    if done < warmup:
        return BEGIN + (1 - BEGIN) * done / warmup
    return shape((done - warmup) / (total - warmup))

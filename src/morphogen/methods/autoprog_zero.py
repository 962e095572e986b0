"""Fine-tuning from the head down, by a schedule that is found without training (AutoProg-Zero, arXiv 2410.00350)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..parts import SearchShares
from ..run.part import Part
from .method import Method


@dataclass(frozen=True)
class AutoProgZero(Method):
    """Train the last layers of a pretrained network, as many in each stage as two zero-cost proxies advise.

    At the start of each stage but the last, the shares from the present one on are compared on a few batches: by the
    condition number of the neural tangent kernel (trainability) and by ZiCo (convergence), against the FLOPs of a step,
    see `search/zero_cost.py`. Nothing is trained for it, and nothing of it stays in the network. The last stage trains
    the last share.

    Attributes:
        shares: of the layers that are trained, to choose among: two or more in (0, 1], rising; the last is 1 where all
            of the network is to be trained in the end.
        stages: number of stages of equal length, at least 2.
        subset: training images to compare on, of at least two batches; None takes four batches.

    Raises:
        ConfigError: shares that do not rise, or a setting out of range.
    """

    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    stages: int = 4
    subset: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()

    def parts(self) -> Sequence[Part]:
        """One that freezes, and searches."""
        return [SearchShares(self.shares, self.stages, self.subset)]

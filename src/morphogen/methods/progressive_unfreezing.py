"""Fine-tuning from the head down: AutoProg-Zero's progressive unfreezing, by a schedule that is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..parts import Unfreeze
from ..run.part import Part
from .method import Method


@dataclass(frozen=True)
class ProgressiveUnfreezing(Method):
    """Train the last layers of a pretrained network first, and more of them in each stage.

    Attributes:
        shares: for each stage, all of one length, the share of the layers that are trained, in (0, 1], rising; the
            last is 1 where all of the network is to be trained in the end.

    Raises:
        ConfigError: shares that do not rise, or are out of range.
    """

    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()

    def parts(self) -> Sequence[Part]:
        """One that freezes."""
        return [Unfreeze(self.shares)]

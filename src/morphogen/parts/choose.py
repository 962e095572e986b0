"""What parts have in common that compare candidates by the loop's own loss and data, and let one go on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import ConfigError
from ..run.part import Part
from ..run.run import Run
from ..search.candidates import Found, Probe
from ..search.searching import Searching
from .resize import Resize


class Choose(Part):
    """Compare candidates; what was found is in the run's records.

    Attributes:
        subset: training images to compare candidates on; None leaves it to `images_of`.
        searching: the elastic supernet at work, where there is one.
        searches: the outcome of every search so far.
    """

    def __init__(self, subset: int | None = None):
        """`subset`: see above."""
        self.subset = subset
        self.searching: Searching | None = None
        self.searches: list[Found] = []

    @property
    def chooses(self) -> bool:
        """Whether anything is ever chosen."""
        return True

    def images_of(self, images: int, batch_size: int) -> int:
        """How many of so many training images candidates are compared on."""
        raise NotImplementedError

    def begin(self, run: Run) -> None:
        """Raises ConfigError where there is nothing to compare candidates with."""
        super().begin(run)
        if self.chooses and run.probe is None:
            raise ConfigError(
                "this method compares sub-networks while it trains, and has nothing to compare them with",
                where=run.who,
                expected="attach(..., probe=morphogen.Probe(loss=..., subset=...))",
            )

    @property
    def probe(self) -> tuple[Probe, Callable[..., torch.Tensor]]:
        """The loop's loss and data, and what makes images smaller."""
        assert self.run.probe is not None
        return self.run.probe, (self.run.part(Resize) or Resize()).resized

"""How many of the last layers are trained, found at the start of each stage without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..search.candidates import Found
from ..search.zero_cost import search_without_training
from .choose import Choose
from .unfreeze import Unfreeze

BATCHES = 4
"""To compare candidates on. ZiCo's authors take two; the more, the surer the spread over them."""


class SearchShares(Choose, Unfreeze):
    """Freeze the first layers, as many in each stage as the best of the candidates does; never more than before.

    Attributes:
        shares: to choose among.
    """

    def __init__(self, shares: Sequence[float], stages: int, subset: int | None = None):
        """
        Args:
            shares: of the layers that are trained, in (0, 1], rising, two or more; the last stage has the last.
            stages: of equal length, at least 2.
            subset: training images to compare candidates on; None takes four batches.

        Raises:
            ConfigError: shares that do not rise, or settings out of range.
        """
        Unfreeze.__init__(self, shares)
        Choose.__init__(self, subset)
        if len(self.shares) < 2 or stages < 2 or (subset is not None and subset < 1):
            raise ConfigError(
                "out of range",
                where=self.name,
                expected="2 shares or more, 2 stages or more, a subset of 1 image or more",
                found=f"{len(self.shares)} shares, {stages} stages, a subset of {subset}",
            )
        self._count = stages
        self._entered: int | None = None

    def settings(self) -> tuple[Any, ...]:
        """All of them."""
        return self.shares, self._count, self.subset

    def images_of(self, images: int, batch_size: int) -> int:
        """See `Choose`."""
        return self.subset or min(BATCHES * batch_size, images)

    def before_epoch(self, epoch: int) -> bool:
        """Choose, where a stage begins."""
        number = self._of(epoch)
        if number == self._entered:
            return False
        before, self._stage = self._stage, self._chosen(number, epoch)
        self._entered = number
        return self._stage != before

    def state_dict(self) -> dict[str, Any]:
        """The share at work, the stage, and what was found."""
        return {**super().state_dict(), "entered": self._entered, "searches": [each.record() for each in self.searches]}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """The same."""
        freeze, entered = super().prepare(state), state["entered"]
        searches = [Found.from_record(record) for record in state["searches"]]
        if entered is not None and (type(entered) is not int or not 0 <= entered < self._count):
            raise ValueError(f"no stage {entered!r} of {self._count}")
        if (entered is None) != (state["stage"] is None):
            raise ValueError("a stage without a share of the layers, or a share without a stage")

        def load() -> None:
            self._entered, self.searches = entered, searches
            freeze()

        return load

    def _chosen(self, number: int, epoch: int) -> int:
        """The number of the share that a stage trains."""
        least, last = self._stage or 0, len(self.shares) - 1
        if number == self._count - 1 or least == last:
            return last
        frozen = {share: self._frozen[least + i] for i, share in enumerate(self.shares[least:])}
        with self.run.measuring():
            self.searches.append(search_without_training(self.run.network, frozen, *self.probe, epoch))
        return least + self.searches[-1].chosen

"""What all methods that prune by a group lasso have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ...network import Network
from ...pruning.policy import Pruning
from ...schedule.stages import Stage
from ..method import Method


@dataclass(frozen=True)
class Sparsifying(Method):
    """The dense network, and a group lasso that makes channels sparse.

    Attributes:
        ratio: the lasso penalty ratio (equation 3), in (0, 1); the paper finds 0.2 to 0.25 right for its long runs.
        threshold: a channel none of whose weights is as large as this is sparse.
        multiple_of: channel counts stay at multiples of this, such as 8 or 16; see `morphogen plan`.
        proximal: apply the penalty as a proximal step after the optimizer's, which makes exact zeros; for AdamW, and
            for short runs.

    Raises:
        ConfigError: a setting out of range.
    """

    ratio: float = 0.25
    threshold: float = 1e-4
    multiple_of: int = 1
    proximal: bool = False

    def __post_init__(self) -> None:
        self._policy((1,))

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """The dense network throughout; what leaves it is read off the weights."""
        return [Stage(0, network.dense)]

    @abstractmethod
    def pruning(self, epochs: int) -> Pruning:
        """When the penalty is at work, and when what is sparse goes."""

    def _policy(
        self, at: tuple[int, ...], start: int = 0, stop: int | None = None, *, from_the_first_batch: bool = False
    ) -> Pruning:
        return Pruning(
            self.ratio, at, start, stop, self.threshold, self.multiple_of, self.proximal, from_the_first_batch
        )

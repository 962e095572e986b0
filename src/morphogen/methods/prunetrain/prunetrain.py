"""Group lasso from the first step on, and a smaller network every few epochs (PruneTrain, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ...network import Network
from ...pruning.policy import Pruning
from ...schedule.stages import Stage
from ..method import Method


@dataclass(frozen=True)
class PruneTrain(Method):
    """Begin with the dense network; the group lasso makes channels sparse, and every interval they are taken out.

    Attributes:
        ratio: the lasso penalty ratio (equation 3), in (0, 1); the paper finds 0.2 to 0.25 right for its long runs.
        interval: the reconfiguration interval in epochs; None is an eighteenth of the run, the paper's 10 of 182 and 5
            of 90 epochs.
        start: the share of the run before which there is no penalty, in [0, 1).
        threshold: a channel none of whose weights is as large as this is sparse.
        multiple_of: channel counts stay at multiples of this, such as 8 or 16; see `morphogen plan`.
        proximal: apply the penalty as a proximal step after the optimizer's, which makes exact zeros; for AdamW.

    Raises:
        ConfigError: a setting out of range.
    """

    ratio: float = 0.25
    interval: int | None = None
    start: float = 0.0
    threshold: float = 1e-4
    multiple_of: int = 1
    proximal: bool = False

    def __post_init__(self) -> None:
        who = type(self).__name__
        if not 0 <= self.start < 1:
            raise ConfigError("start out of range", where=who, expected="0 <= start < 1", found=f"{self.start}")
        if self.interval is not None and not (isinstance(self.interval, int) and self.interval >= 1):
            raise ConfigError(
                "interval out of range", where=who, expected="epochs, at least 1", found=f"{self.interval}"
            )
        self._policy((1,), 0)

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """The dense network throughout; what leaves it is read off the weights."""
        return [Stage(0, network.dense)]

    def pruning(self, epochs: int) -> Pruning:
        """A reconfiguration after every interval from the start of the penalty on, and one at the end.

        Raises:
            ConfigError: the interval is longer than what is left of the run.
        """
        start = round(self.start * epochs)
        interval = self.interval or max(1, round(epochs / 18))
        if start + interval > epochs:
            raise ConfigError(
                "the reconfiguration interval is longer than the run",
                where=type(self).__name__,
                expected=f"at most {epochs - start} epochs",
                found=f"{interval}",
            )
        return self._policy((*range(start + interval, epochs, interval), epochs), start)

    def _policy(self, at: tuple[int, ...], start: int, stop: int | None = None) -> Pruning:
        return Pruning(self.ratio, at, start, stop, self.threshold, self.multiple_of, self.proximal)

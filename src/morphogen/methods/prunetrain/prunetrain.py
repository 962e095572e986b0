"""Group lasso from the first step on, and a smaller network every few epochs (PruneTrain, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError
from ...pruning.policy import Pruning
from .sparsifying import Sparsifying


@dataclass(frozen=True)
class PruneTrain(Sparsifying):
    """Begin with the dense network; the group lasso makes channels sparse, and every interval they are taken out.

    Attributes:
        interval: the reconfiguration interval in epochs; None is an eighteenth of the run, the paper's 10 of 182 and 5
            of 90 epochs.
        start: the share of the run before which there is no penalty, in [0, 1).

    The other settings are those of `Sparsifying`.

    Raises:
        ConfigError: a setting out of range.
    """

    interval: int | None = None
    start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        who = type(self).__name__
        if not 0 <= self.start < 1:
            raise ConfigError("start out of range", where=who, expected="0 <= start < 1", found=f"{self.start}")
        if self.interval is not None and not (isinstance(self.interval, int) and self.interval >= 1):
            raise ConfigError(
                "interval out of range", where=who, expected="epochs, at least 1", found=f"{self.interval}"
            )

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

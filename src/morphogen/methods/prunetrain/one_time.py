"""The same penalty, but one reconfiguration (Alvarez and Salzmann, NeurIPS 2017; PruneTrain, Figure 2c)."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError
from ...pruning.policy import Pruning
from .sparsifying import Sparsifying


@dataclass(frozen=True)
class OneTime(Sparsifying):
    """Group lasso throughout; what is sparse is taken out once.

    Attributes:
        at: the share of the run after which, in (0, 1).

    The other settings are those of `Sparsifying`.

    Raises:
        ConfigError: a setting out of range.
    """

    at: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.at < 1:
            raise ConfigError("at out of range", where="OneTime", expected="0 < at < 1", found=f"{self.at}")

    def pruning(self, epochs: int) -> Pruning:
        """One reconfiguration."""
        return self._policy((round(self.at * epochs),))

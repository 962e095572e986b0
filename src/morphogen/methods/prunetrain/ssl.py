"""Structured sparsity from a trained network (Wen et al., NeurIPS 2016), the practice PruneTrain is compared to."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError
from ...pruning.policy import Pruning
from .sparsifying import Sparsifying


@dataclass(frozen=True)
class SSL(Sparsifying):
    """Train the dense network, sparsify it at full size, take out what is sparse, fine-tune.

    Three runs in one: each begins the recipe's learning-rate schedule anew. PruneTrain puts the cost of such a protocol
    at almost three times that of dense training; give it a run of so many epochs.

    Attributes:
        trained: the share of the run after which the network counts as trained and the penalty begins.
        sparse: the share after which what is sparse is taken out, and fine-tuning begins without the penalty.

    The penalty's coefficient is set on the run's first batch, as PruneTrain's is, so that the same ratio means the same
    strength. The other settings are those of `Sparsifying`.

    Raises:
        ConfigError: a setting out of range.
    """

    trained: float = 0.4
    sparse: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.trained < self.sparse < 1:
            raise ConfigError(
                "shares out of range",
                where="SSL",
                expected="0 < trained < sparse < 1",
                found=f"{self.trained} and {self.sparse}",
            )

    def pruning(self, epochs: int) -> Pruning:
        """One reconfiguration, after which the penalty is over.

        Raises:
            ConfigError: a part of the run without an epoch.
        """
        trained, sparse = self.restarts(epochs)
        if not 0 < trained < sparse < epochs:
            raise ConfigError(
                "each of the three parts of the run needs at least an epoch",
                where="SSL",
                found=f"{trained}, {sparse - trained} and {epochs - sparse} of {epochs} epochs",
            )
        return self._policy((sparse,), trained, sparse, from_the_first_batch=True)

    def restarts(self, epochs: int) -> tuple[int, ...]:
        """Sparsifying and fine-tuning begin like runs of their own."""
        return round(self.trained * epochs), round(self.sparse * epochs)

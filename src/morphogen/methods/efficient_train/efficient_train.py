"""Low frequencies first (Wang et al., EfficientTrain, ICCV 2023, and EfficientTrain++, TPAMI 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...network import Network
from ...schedule.growth import growth
from ...schedule.linear import starts_by_ratio
from ...schedule.stages import Regularisation, Stage
from ..method import Method

PARTS = (2, 4, 2, 2)
SIZES = (96 / 224, 160 / 224, 192 / 224, 1.0)


@dataclass(frozen=True)
class EfficientTrain(Method):
    """Crop the image's spectrum to 96, 160, 192, 224 of 224 pixels for 2 : 4 : 2 : 2 of the epochs.

    RandAugment's magnitude rises linearly from 0 to the recipe's own.
    """

    resizing: ClassVar[str] = "low-frequency"

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Four stages of the whole network, at growing resolution.

        Raises:
            ConfigError: too few epochs, or a model that takes no images.
        """
        starts = starts_by_ratio(epochs, PARTS)
        return growth(network, starts, epochs, resolution=SIZES, who="EfficientTrain")

    def regularisation(self, epoch: int, epochs: int) -> Regularisation:
        """RandAugment from 0 to its full magnitude."""
        return Regularisation(randaugment=epoch / max(1, epochs - 1))

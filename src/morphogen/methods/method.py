"""What a method is: a policy of when to morph, to which sub-network, filled how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ..morph.growth import GrowthOperator
from ..network import Network
from ..schedule.stages import Regularisation, Stage


class Method(ABC):
    """A policy over one network. A method is a frozen dataclass of its settings, checked when it is made.

    Attributes:
        operator: the growth operator of its morphs, or its name.
        resizing: how images are brought to a smaller resolution: `bilinear` (antialiased), or `low-frequency`
            (the low frequencies of their spectrum, EfficientTrain).
    """

    operator: str | GrowthOperator
    resizing: ClassVar[str] = "bilinear"

    @abstractmethod
    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """The stages of a run of `epochs` epochs, the first at epoch 0, in order.

        Raises:
            ConfigError: the settings do not fit the run's length or the network.
        """

    def regularisation(self, epoch: int, epochs: int) -> Regularisation:
        """How strong the recipe's regularisation is in an epoch; by default as the recipe says."""
        return Regularisation()

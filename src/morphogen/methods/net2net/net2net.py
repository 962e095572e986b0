"""Width growth by copied units that leaves the function as it is (Net2WiderNet, ICLR 2016, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from ...errors import ConfigError
from ...morph.growth import GrowthOperator
from ...network import Network
from ...schedule.growth import growth
from ...schedule.linear import equal_starts, linear_ratios
from ...schedule.stages import Stage
from ..method import Method, check_growth


@dataclass(frozen=True)
class Net2Net(Method):
    """Begin with a share of every layer's channels, and widen in equal steps by copies of them.

    Attributes:
        width: the share of the channels in the first stage, in (0, 1].
        stages: number of stages of equal length; the last is the dense network. The paper widens once.
        noise: standard deviation of what is added to the weights into every copy but the first, as a share of the
            tensor's own; 0 for none, which leaves the function exactly as it is.
        multiple_of: round channel counts to multiples that the hardware likes, such as 8.

    Raises:
        ConfigError: a setting out of range.
    """

    width: float = 0.5
    stages: int = 2
    noise: float = 0.01
    multiple_of: int = 1
    operator: str | GrowthOperator = field(default="net2net", init=False, repr=False)

    def __post_init__(self) -> None:
        check_growth("Net2Net", self.stages, self.multiple_of, width=self.width)
        if not 0 <= self.noise < inf:
            raise ConfigError("noise out of range", where="Net2Net", expected="noise >= 0", found=f"{self.noise}")
        if self.noise:  # written out, so that the saved schedule of a run says it
            object.__setattr__(self, "operator", f"net2net(noise={self.noise})")

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Stages of equal length, each wider by the same share.

        Raises:
            ConfigError: more stages than epochs, or a network without channels that can change.
        """
        return growth(
            network,
            equal_starts(epochs, self.stages),
            epochs,
            width=linear_ratios(self.width, self.stages),
            multiple_of=self.multiple_of,
            who="Net2Net",
        )

"""A growth schedule from a file (AutoProg, supplement, Table VIII: retraining with the searched schedule)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..dense.network import Network
from ..errors import ConfigError, SubNetworkError
from ..morph.entry import depth_named
from ..parts import Grow, Regularise, Resize
from ..run.part import Part
from ..schedule.saved import SavedSchedule, shares_of
from ..schedule.stages import Regularisation, Stage
from ..search.candidates import describe
from .method import Method, average_for, check_growth


@dataclass(frozen=True)
class Retrain(Method):
    """Follow the stages, operators and regularisation that another run wrote down, of the same model or of another.

    Attributes:
        file: `schedule.json`, as `morphogen train` and `compare` write it.
        multiple_of: channel counts of another model are rounded to multiples of this, as the hardware likes them.

    Raises:
        ConfigError: no such file, or it is no schedule.
        MorphError: an unknown operator.
    """

    file: str = "schedule.json"
    multiple_of: int = 8
    saved: SavedSchedule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_growth("Retrain", 1, self.multiple_of)
        object.__setattr__(self, "saved", SavedSchedule.load(Path(self.file)))
        self.parts()

    def parts(self) -> Sequence[Part]:
        """What the saved run had."""
        settings = self.saved.settings
        deep = settings["depth_operator"]
        return [
            Grow(self.schedule, operator=settings["operator"], depth_operator=deep),
            *average_for(deep, settings["decay"], settings["horizon"]),
            Resize(settings["resizing"]),
            Regularise(self.regularisation),
        ]

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """The saved stages, at their share of this run; of another model, their shares of it, which is told.

        Raises:
            ConfigError: the run is too short, or this model cannot follow the schedule.
        """
        saved = self.saved
        table = depth_named(saved.settings["depth_operator"]).table
        try:
            stages = saved.for_network(network, epochs, table, self.multiple_of)
        except (ConfigError, SubNetworkError) as error:
            raise ConfigError(f"this model cannot follow the schedule ({error})", where=self.file) from error
        if network.dense != saved.dense:
            shares = [shares_of(subnetwork, saved.dense) for _, subnetwork in saved.stages]
            followed = "; ".join(", ".join(f"{share:.2f}" for share in each) for each in shares)
            warnings.warn(
                f"{self.file} is the schedule of another model ({describe(saved.dense)}); its shares of depth, side of "
                f"the image and width are followed: {followed}",
                stacklevel=2,
            )
        return stages

    def regularisation(self, epoch: int, epochs: int) -> Regularisation:
        """That of the same share of the saved run."""
        return Regularisation(*self.saved.regularisation[epoch * self.saved.epochs // epochs])

"""A growth schedule from a file (AutoProg, supplement, Table VIII: retraining with the searched schedule)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..dense.network import Network
from ..errors import ConfigError, SubNetworkError
from ..parts import Grow, Regularise, Resize
from ..run.part import Part
from ..schedule.saved import SavedSchedule
from ..schedule.stages import Regularisation, Stage
from .method import Method, average_for


@dataclass(frozen=True)
class Retrain(Method):
    """Follow the stages, operators and regularisation that another run of the same model wrote down.

    Attributes:
        file: `schedule.json`, as `morphogen train` and `compare` write it.

    Raises:
        ConfigError: no such file, or it is no schedule.
        MorphError: an unknown operator.
    """

    file: str = "schedule.json"
    saved: SavedSchedule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
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
        """The saved stages, at their share of this run.

        Raises:
            ConfigError: the schedule is of another model, the run is too short, or the saved run was stopped before
                its network was whole.
        """
        stages = self.saved.over(epochs)
        try:
            for stage in stages:
                network.check(stage.subnetwork)
        except SubNetworkError as error:
            raise ConfigError(
                f"the schedule is of another model ({error})",
                where=self.file,
                todo="Retrain with the model, and the image size, that the schedule was found with",
            ) from error
        if stages[-1].subnetwork != network.dense:
            raise ConfigError(
                "this schedule does not end with the dense network",
                where=self.file,
                expected="the schedule of a run that was finished",
            )
        return stages

    def regularisation(self, epoch: int, epochs: int) -> Regularisation:
        """That of the same share of the saved run."""
        return Regularisation(*self.saved.regularisation[epoch * self.saved.epochs // epochs])

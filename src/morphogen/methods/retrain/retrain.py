"""A growth schedule from a file (AutoProg, supplement, Table VIII: retraining with the searched schedule)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import ConfigError, SubNetworkError
from ...network import Network
from ...schedule.saved import SavedSchedule
from ...schedule.stages import Regularisation, Stage
from ..method import Method


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
        saved = SavedSchedule.load(Path(self.file))
        for name, value in [("saved", saved), *saved.settings.items()]:
            object.__setattr__(self, name, value)
        self.check_operators()

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

"""A growth schedule as a file: what a run found or followed, for another run to follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from ..dense.subnet import SubNetwork
from ..errors import ConfigError, MorphogenError
from .stages import Stage

FORMAT = "morphogen schedule 1"


@dataclass(frozen=True)
class SavedSchedule:
    """Stages, the operators between them, and Adaptive Regularisation.

    Attributes:
        epochs: of the run it comes from; in a run of another length stages keep their share of it.
        stages: (first epoch, sub-network) each.
        settings: `operator`, `depth_operator`, `decay`, `horizon`, `resizing` of the method, see `Method`.
        regularisation: for each epoch, shares of RandAugment, random erasing and stochastic depth.
    """

    epochs: int
    stages: tuple[tuple[int, SubNetwork], ...]
    settings: Mapping[str, Any]
    regularisation: tuple[tuple[float, float, float], ...]

    def over(self, epochs: int) -> list[Stage]:
        """The stages in a run of so many epochs; one that would have none is left out.

        Raises:
            ConfigError: the last would have none.
        """
        starts = {-(-start * epochs // self.epochs): subnetwork for start, subnetwork in self.stages}
        if max(starts) >= epochs:
            raise ConfigError(
                "the run is too short for this schedule: its last stage would have no epoch",
                expected=f"at least {-(-self.epochs // (self.epochs - self.stages[-1][0]))} epochs",
                found=f"{epochs}",
            )
        return [Stage(start, subnetwork) for start, subnetwork in starts.items()]

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of JSON types."""
        return {
            "format": FORMAT,
            "epochs": self.epochs,
            "stages": [{"epoch": start, "subnetwork": subnetwork.to_dict()} for start, subnetwork in self.stages],
            "settings": dict(self.settings),
            "regularisation": [list(strengths) for strengths in self.regularisation],
        }

    @staticmethod
    def load(path: Path) -> SavedSchedule:
        """Read a file that holds what `to_dict` gives.

        Raises:
            ConfigError: no such file, or it is no schedule.
        """
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}")
            schedule = SavedSchedule(
                int(data["epochs"]),
                tuple((int(s["epoch"]), SubNetwork.from_dict(s["subnetwork"])) for s in data["stages"]),
                dict(data["settings"]),
                tuple((float(a), float(b), float(c)) for a, b, c in data["regularisation"]),
            )
            schedule.check()
            return schedule
        except (OSError, ValueError, KeyError, TypeError, AttributeError, MorphogenError) as error:
            raise ConfigError(
                f"not a growth schedule ({type(error).__name__}: {error})",
                where=str(path),
                expected="schedule.json as `morphogen train` writes it",
            ) from None

    def check(self) -> None:
        """Raise ValueError unless the stages are in order and the settings are those of a method."""
        starts = [start for start, _ in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= self.epochs:
            raise ValueError(f"stages begin at epochs {starts} of {self.epochs}")
        if set(self.settings) != set(SETTINGS) or len(self.regularisation) != self.epochs:
            raise ValueError(f"settings {sorted(self.settings)}, regularisation for {len(self.regularisation)} epochs")
        for name, kinds in SETTINGS.items():
            if not isinstance(self.settings[name], kinds):
                raise ValueError(f"{name} {self.settings[name]!r}")


SETTINGS: Mapping[str, tuple[type, ...]] = {
    "operator": (str,),
    "depth_operator": (str,),
    "decay": (float, int, NoneType),
    "horizon": (float, int),
    "resizing": (str,),
}
"""What a file keeps of a method, and the kinds of its values."""


def found_stages(stages: Sequence[Stage]) -> tuple[tuple[int, SubNetwork], ...]:
    """The sub-networks of a run without its searches: each begins where the search that found it began."""
    merged: list[tuple[int, SubNetwork]] = []
    start: int | None = None
    for stage in stages:
        start = stage.start if start is None else start
        if stage.choose_at is None:
            if not merged or merged[-1][1] != stage.subnetwork:
                merged.append((start, stage.subnetwork))
            start = None
    return tuple(merged)

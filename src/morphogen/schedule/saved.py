"""A growth schedule as a file: what a run found or followed, for another run to follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from ..dense.depth import Table
from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import ConfigError, MorphogenError, first_line
from ..machine.reading import MALFORMED, parse_json, read_text, whole, within
from .growth import growth
from .stages import Stage

FORMAT = "morphogen schedule 1"

MOST_EPOCHS = 1_000_000

STRONGEST = 100.0
"""Share of a recipe's regularisation that an epoch can have; methods give 0 to 1."""


@dataclass(frozen=True)
class SavedSchedule:
    """Stages, the operators between them, and Adaptive Regularisation.

    Attributes:
        epochs: of the run it comes from; in a run of another length stages keep their share of it.
        stages: (first epoch, sub-network) each; the last is that run's dense network.
        settings: `operator`, `depth_operator`, `decay`, `horizon`, `resizing` of the method, see `Method`.
        regularisation: for each epoch, shares of RandAugment, random erasing and stochastic depth.
    """

    epochs: int
    stages: tuple[tuple[int, SubNetwork], ...]
    settings: Mapping[str, Any]
    regularisation: tuple[tuple[float, float, float], ...]

    @property
    def dense(self) -> SubNetwork:
        """The dense network of the run that it comes from."""
        return self.stages[-1][1]

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

    def for_network(self, network: Network, epochs: int, table: Table, multiple_of: int = 1) -> list[Stage]:
        """The stages in a run of so many epochs of any network.

        Of a network like the saved run's they are its sub-networks. Another one (of other depth, width or image size)
        follows its shares of depth, of the image's side and of width, rounded to what it can be (AutoProg, supplement,
        Table IX: a schedule found on ViTs trains a ResNet-50).

        Args:
            network: to train.
            epochs: length of its run.
            table: the index table of the depth operator.
            multiple_of: of the channel counts of another network, see `Network.subnetwork`.

        Raises:
            ConfigError: the run is too short; the saved sub-networks are no one share of depth, side or width, or this
                network cannot change what they change.
        """
        stages = self.over(epochs)
        if network.dense == self.dense:
            for stage in stages:
                network.check(stage.subnetwork)
            return stages
        shares = [shares_of(stage.subnetwork, self.dense) for stage in stages]
        depth, side, width = zip(*shares, strict=True)
        return growth(
            network,
            [stage.start for stage in stages],
            epochs,
            depth=depth if min(depth) < 1 else None,
            resolution=side if min(side) < 1 else None,
            width=width if min(width) < 1 else None,
            table=table,
            multiple_of=multiple_of,
        )

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
            data = parse_json(read_text(path))
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}")
            stages = data["stages"]
            starts = [whole(stage["epoch"], 0, MOST_EPOCHS) for stage in stages]
            subnetworks = SubNetwork.from_dicts([stage["subnetwork"] for stage in stages])
            strengths = [tuple(within(share, 0, STRONGEST) for share in each) for each in data["regularisation"]]
            schedule = SavedSchedule(
                whole(data["epochs"], 1, MOST_EPOCHS),
                tuple(zip(starts, subnetworks, strict=True)),
                dict(data["settings"]),
                tuple((a, b, c) for a, b, c in strengths),
            )
            schedule.check()
            return schedule
        except (OSError, *MALFORMED, MorphogenError) as error:
            raise ConfigError(
                f"not a growth schedule ({first_line(error)})",
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
            if type(self.settings[name]) not in kinds:
                raise ValueError(f"{name} {str(self.settings[name])[:40]}")


SETTINGS: Mapping[str, tuple[type, ...]] = {
    "operator": (str,),
    "depth_operator": (str,),
    "decay": (float, int, NoneType),
    "horizon": (float, int),
    "resizing": (str,),
}
"""What a file keeps of a method, and the kinds of its values."""


def shares_of(subnetwork: SubNetwork, dense: SubNetwork) -> tuple[float, float, float]:
    """What of a dense network a sub-network is: its share of the blocks, of the image's side and of the channels.

    Raises:
        ConfigError: block stacks, channel groups or the two sides have shares that differ by more than an eighth, and
            by more than rounding to whole blocks or channels explains.
    """
    side, dense_side = (dict(enumerate(each.resolution or ())) for each in (subnetwork, dense))
    return (
        _share(_counts(subnetwork.blocks), _counts(dense.blocks), "depth"),
        _share(side, dense_side, "resolution"),
        _share(_counts(subnetwork.channels), _counts(dense.channels), "width"),
    )


def _counts(alive: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    return {name: len(units) for name, units in alive.items()}


def _share(alive: Mapping[Any, int], dense: Mapping[Any, int], what: str) -> float:
    if alive.keys() != dense.keys():
        raise ConfigError(f"the {what} of a stage is not a part of the network it was saved from")
    if not dense:
        return 1.0
    share = sum(alive.values()) / sum(dense.values())
    for name, size in dense.items():
        if abs(alive[name] - share * size) >= max(1, size / 8):
            raise ConfigError(
                f"the {what} of this schedule is not a share that another model could follow",
                expected=f"about {share:.2f} of each",
                found=f"{alive[name]} of {size} in {name}",
                todo="Retrain with the model that the schedule was found with",
            )
    return share


def found_stages(stages: Sequence[Stage], found: Sequence[SubNetwork]) -> tuple[tuple[int, SubNetwork], ...]:
    """The sub-networks of a run as if its searches' outcomes had been known: each begins where its search began.

    Args:
        stages: of the run; of a search whose epochs were thrown away only what it found.
        found: by the searches that are among the stages and over, in order.
    """
    outcomes = iter(found)
    merged: list[tuple[int, SubNetwork]] = []
    for stage in stages:
        subnetwork = stage.subnetwork if stage.choose_at is None else next(outcomes, None)
        if subnetwork is not None and (not merged or merged[-1][1] != subnetwork):
            merged.append((stage.start, subnetwork))
    return tuple(merged)

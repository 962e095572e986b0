"""What an output folder holds of an earlier run: it is gone on with, kept, or removed because the user says so."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..report.confusion import CONFUSION
from ..report.savings.write import PICTURES
from ..report.training import TRAINING_PICTURE
from .config import TrainConfig
from .tasks.segmentation import PICTURE

CHECKPOINTS = "checkpoints/epoch-*.safetensors", "checkpoints/.epoch-*.part"
TRAINED = (
    "results.json",
    "model.pt",
    "best.pt",
    "schedule.json",
    "search.png",
    TRAINING_PICTURE,
    *CONFUSION,
    PICTURE,
    *PICTURES,
    *CHECKPOINTS,
)
"""What `train` leaves; the first is written last, and says whether the run is finished."""
EXPORTED = ("model.safetensors", "model.onnx", "model.pt2")
COMPARED = (
    "runs.jsonl step_times.json results.json results.csv summary.md accuracy.png fronts.json fronts.csv fronts.md "
    "fronts.png search_*.png schedule_*.json checkpoints/*/epoch-*.safetensors checkpoints/*/.epoch-*.part "
    "checkpoints/*/timed_apart"
).split() + list(PICTURES)


@dataclass(frozen=True)
class Earlier:
    """A run of `train` in its output folder.

    Attributes:
        folder: it is in.
        there: its files.
        finished: it was trained to its end, and all is written.
        data: what it was trained on, by name; empty where that is not known.
    """

    folder: Path
    there: list[Path]
    finished: bool
    data: str = ""

    @classmethod
    def of(cls, config: TrainConfig) -> Earlier:
        """What there is.

        Raises:
            ConfigError: a run that is neither to be gone on with nor to be removed; one with other settings that is
                finished; a comparison.
        """
        folder = config.output
        if (folder / "runs.jsonl").exists():
            raise ConfigError("the folder holds a comparison", where=str(folder), todo="Choose another with --output")
        there = found(folder, (*TRAINED, *EXPORTED) if config.overwrite else TRAINED)
        record = _record(folder / TRAINED[0])
        finished = record.get("stopped", "") is None and (folder / "model.pt").exists()
        if there and not (config.resume or config.overwrite):
            todo = (
                "Choose another folder with --output, or train anew with --overwrite, which removes it "
                "(--resume leaves it as it is)"
                if finished
                else "Continue it with --resume, or start over with --overwrite, which removes it, "
                "or choose another folder with --output"
            )
            kind = "is finished" if finished else "was stopped"
            raise ConfigError(f"the folder holds a run that {kind}", where=str(folder), todo=todo)
        theirs, ours = record.get("settings"), config.deciding()
        if config.resume and isinstance(theirs, dict):
            other = next((key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)), None)
            if other:
                raise ConfigError(
                    "the folder holds a run with other settings",
                    where=str(folder),
                    expected=f"{other} {ours.get(other)}, as here",
                    found=f"{theirs.get(other)}",
                    todo="Give the settings it was started with, or choose another folder with --output",
                )
        return cls(folder, there, finished, str(record.get("data", "")))

    def remove(self) -> None:
        """Remove it, and say so first."""
        remove(self.folder, self.there)


def found(folder: Path, names: Sequence[str]) -> list[Path]:
    """What is there of these files."""
    return [path for name in names for path in sorted(folder.glob(name))]


def remove(folder: Path, there: Sequence[Path]) -> None:
    """Remove these files, and say so first."""
    if there:
        deep = [path for path in there if path.parent != folder]
        names = [path.name for path in there if path.parent == folder] + [f"{len(deep)} checkpoint files"] * bool(deep)
        warnings.warn(f"{folder}: --overwrite removes {', '.join(names)}", stacklevel=2)
    for path in there:
        path.unlink()


def refuse_trained(folder: Path) -> None:
    """Raises ConfigError where `train` has left its weights or its checkpoints."""
    for path in found(folder, ("model.pt", *CHECKPOINTS)):
        raise ConfigError(
            "the folder holds a run of `morphogen train`",
            where=str(folder),
            found=path.name,
            todo="Choose another with --output",
        )


def _record(path: Path) -> dict[str, Any]:
    """The record of a run; empty where there is none that can be read."""
    try:
        (record,) = json.loads(path.read_text())
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}

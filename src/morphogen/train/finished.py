"""The finished runs of a comparison, on disk."""

from __future__ import annotations

import json
from dataclasses import asdict

from ..errors import ConfigError, first_line
from ..machine.files import write_text
from ..machine.reading import MALFORMED, parse_json, read_text
from ..report.ledger import environment
from ..report.records import Record, check_record
from .config import CompareConfig
from .contents import known_as
from .data import Data
from .earlier import COMPARED, found, refuse_trained, remove
from .pretrained import known_as as weights_known_as

BESIDE_THE_RECIPE = tuple(
    "table methods seeds first_seed budgets parallel output overwrite workers sparsity_map warn_drop".split()
)
"""Settings that leave the outcome of a run as it is."""

Key = tuple[str, float, int]
"""What a run is known by: its label, its length as a share of its own full one, its seed."""


class Finished:
    """Finished runs, appended at once to `runs.jsonl` in the output folder.

    Attributes:
        head: recipe and environment, which every record repeats.
        records: by their keys.
    """

    def __init__(self, config: CompareConfig, data: Data):
        """Read those that are there.

        Raises:
            ConfigError: they are of another recipe, or cannot be read; the folder holds what `train` leaves.
        """
        self.path = config.output / "runs.jsonl"
        if not self.path.exists():
            refuse_trained(config.output)
        if config.overwrite:
            remove(config.output, found(config.output, COMPARED))
        # Results are to be shared, the paths of a machine are not.
        recipe = _recipe(config) | {
            "data": data.name,
            "token_labels": data.teacher,
            "pretrained": config.pretrained and weights_known_as(config.pretrained),
            "data_known_as": known_as(data.contents),
        }
        self.head = {"recipe": recipe, "environment": environment(config.torch_device())}
        self.records: dict[Key, Record] = {}
        try:
            text = read_text(self.path) if self.path.exists() else ""
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read it ({first_line(error)})", where=str(self.path)) from error
        whole, _, torn = text.rpartition("\n")  # a killed session may have begun a last line
        for number, line in enumerate(whole.split("\n") if whole else (), 1):
            record = self._read(line, number)
            self._check(record, recipe)
            self.records[_key(record)] = record
        if torn:
            write_text(self.path, whole + "\n" if whole else "")

    def _read(self, line: str, number: int) -> Record:
        """A record, with all that tables and pictures are made of."""
        try:
            record = parse_json(line, nan=True)
            check_record(record)
            return record
        except MALFORMED as error:
            raise ConfigError(
                f"line {number} is not a finished run ({first_line(error)})",
                where=str(self.path),
                todo="Remove the line, and its run is done again; or choose another folder with --output",
            ) from error

    def _check(self, record: Record, recipe: Record) -> None:
        """Refuse a record of another recipe."""
        # Keys that came after the record was written have their defaults in it.
        theirs = _recipe(CompareConfig()) | {"data_known_as": recipe["data_known_as"]} | dict(record.get("recipe", {}))
        if record["method"] == "Dense":  # whose length the stretch does not change
            theirs["stretch"] = recipe["stretch"]
        other = next((key for key in sorted(theirs.keys() | recipe.keys()) if theirs.get(key) != recipe.get(key)), None)
        if other is not None:
            raise ConfigError(
                "the folder holds runs of another recipe",
                where=str(self.path.parent),
                expected=f"{other} {recipe.get(other)}",
                found=f"{theirs.get(other)}",
                todo="Choose another folder with --output, or start over with --overwrite, which removes them",
            )

    def append(self, record: Record) -> None:
        """Keep a finished run."""
        record = {**record, **self.head}
        self.records[_key(record)] = record
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")


def _key(record: Record) -> Key:
    return record["method"], record.get("budget", 1.0), record["seed"]


def _recipe(config: CompareConfig) -> Record:
    """What decides how a run goes."""
    return {key: value for key, value in asdict(config).items() if key not in BESIDE_THE_RECIPE}

"""The finished runs of a comparison, on disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ..errors import ConfigError, first_line
from ..machine.files import write_text
from ..report.ledger import environment
from ..report.records import Record
from .config import CompareConfig
from .contents import known_as
from .data import Data
from .earlier import COMPARED, found, refuse_trained, remove

BESIDE_THE_RECIPE = tuple(
    "methods seeds first_seed budgets parallel output overwrite workers sparsity_map warn_drop".split()
)
"""Settings that leave the outcome of a run as it is."""

Key = tuple[str, float, int]
"""What a run is known by: its label, its length as a share of the full one, its seed."""


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
            "data_known_as": known_as(data.contents),
        }
        self.head = {"recipe": recipe, "environment": environment(config.torch_device())}
        self.records: dict[Key, Record] = {}
        try:
            lines = self.path.read_text().splitlines() if self.path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read it ({first_line(error)})", where=str(self.path)) from error
        whole = []
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line a killed session was writing
            self._check(record, recipe)
            self.records[_key(record)] = record
            whole.append(line + "\n")
        if len(whole) < len(lines):
            write_text(self.path, "".join(whole))

    def _check(self, record: Any, recipe: Record) -> None:
        """Refuse a record of another recipe."""
        # Keys that came after the record was written have their defaults in it.
        theirs = (
            _recipe(CompareConfig())
            | {"data_known_as": recipe["data_known_as"]}
            | (dict(record.get("recipe", {})) if isinstance(record, dict) else {})
        )
        other = next((key for key in sorted(theirs.keys() | recipe.keys()) if theirs.get(key) != recipe.get(key)), None)
        if other is not None or not isinstance(record, dict) or not {"method", "seed"} <= record.keys():
            raise ConfigError(
                "the folder holds runs of another recipe",
                where=str(self.path.parent),
                expected=f"{other} {recipe.get(other)}" if other else "runs",
                found=f"{theirs.get(other)}" if other else "",
                todo="Choose another folder with --output, or begin anew with --overwrite true, which removes them",
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

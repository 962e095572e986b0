"""`morphogen recipes`: the papers' tables, a recipe for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..recipes import FIGURES, TABLES, Row, Table, find_row, find_table
from ..recipes.use import settings_of
from ..report.render import as_table
from .command import Command
from .terminal import console


@dataclass(frozen=True)
class RecipesConfig:
    """What to list.

    Attributes:
        table: such as `network-expansion/4`, or a row of it, `network-expansion/4/0.375`; by default all tables.
        scale: show the settings made small by it, as `train --scale` has them.
    """

    table: str = ""
    scale: float | None = None


def run_recipes(config: RecipesConfig) -> int:
    """List the papers' tables, what they print, and what trains each row."""
    if not config.table:
        for table in TABLES:
            print(heading(table))
            console().print(as_table(figure_rows(table.rows), narrow=True))
        return 0
    if config.table.strip("/").count("/") == 2:
        table, row = find_row(config.table)
        rows = [row]
    else:
        table = find_table(config.table)
        rows = list(table.rows)
    print(heading(table))
    console().print(as_table(figure_rows(rows), narrow=True))
    shared, own = settings_apart([settings_of(row, config.scale) for row in rows])
    print("\n".join(f"{key}: {value}" for key, value in shared.items()))
    for row, settings in zip(rows, own, strict=True):
        if settings or row.needs or row.note:
            print(f"\n{table.name}/{row.name}")
        for key, value in settings.items():
            print(f"  {key}: {value}")
        for told in [f"needs --{key}: {what}" for key, what in row.needs.items()] + ([row.note] if row.note else []):
            print(f"  # {told}")
    print(f"\nto train the table small, on a CPU: morphogen compare --table {table.name} --data FOLDER --scale 0.02")
    return 0


def heading(table: Table) -> str:
    """Name, title and hardware."""
    return f"{table.name}: {table.title} ({table.hardware})"


def figure_rows(rows: Sequence[Row]) -> list[dict[str, str]]:
    """What the paper prints, a row each."""
    figures = [key for key in FIGURES if any(key in row.paper for row in rows)]
    return [{"row": row.name} | {FIGURES[key]: _figure(row.paper.get(key)) for key in figures} for row in rows]


def _figure(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:g}"


def settings_apart(each: Sequence[Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all have in common, and what each has beside it."""
    shared = {key: value for key, value in each[0].items() if all(other.get(key) == value for other in each)}
    return shared, [{key: value for key, value in one.items() if key not in shared} for one in each]


RECIPES = Command(
    "recipes",
    RecipesConfig,
    run_recipes,
    """examples:
  morphogen recipes
  morphogen recipes network-expansion/4
  morphogen recipes network-expansion/4/0.375 --scale 0.05
  morphogen train --recipe network-expansion/4/0.375 --data cifar100:/data/cifar100
  morphogen compare --table network-expansion/4 --data cifar100:/data/cifar100""",
    first=("table", "a table, or a row of it"),
    from_file=False,
)

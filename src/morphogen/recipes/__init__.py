"""The papers' recipes: one for each row of every table, with the figures that the paper prints."""

from __future__ import annotations

from ..errors import ConfigError
from ..spec import suggest
from . import autoprog, network_expansion, prunetrain
from .table import FIGURES, Row, Settings, Table

TABLES = [*network_expansion.TABLES, *autoprog.TABLES, *prunetrain.TABLES]
"""All of them, in the order of the papers and of their tables."""


def find_table(name: str) -> Table:
    """`network-expansion/4`, or `network-expansion/table4`.

    Raises:
        ConfigError: there is none of this name.
    """
    known = {table.name: table for table in TABLES}
    paper, _, number = name.strip("/").partition("/")
    number = number.lower().removeprefix("table")
    found = next((table for key, table in known.items() if key.lower() == f"{paper.lower()}/{number}"), None)
    if found is None:
        raise ConfigError(
            f"no table '{name}'", expected="PAPER/TABLE, see `morphogen recipes`", todo=suggest(name, known)
        )
    return found


def find_row(name: str) -> tuple[Table, Row]:
    """`network-expansion/4/0.375`, or `network-expansion/table4/0.375`.

    Raises:
        ConfigError: there is none of this name.
    """
    where, _, row = name.strip("/").rpartition("/")
    if where.count("/") != 1:
        raise ConfigError(
            f"no recipe '{name}'",
            expected="PAPER/TABLE/ROW, such as network-expansion/4/0.375, see `morphogen recipes`",
        )
    table = find_table(where)
    known = {each.name: each for each in table.rows}
    if row not in known:
        raise ConfigError(f"{table.name} has no row '{row}'", todo=suggest(row, known))
    return table, known[row]


__all__ = ["FIGURES", "TABLES", "Row", "Settings", "Table", "find_row", "find_table"]

"""A whole table of a paper: its rows trained side by side, the paper's figures beside those measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..machine.files import write_text
from ..machine.folder import owned
from ..recipes import FIGURES, Row, Table, find_table
from ..recipes.use import check_data, settings_of
from ..report.measured import measured
from ..report.records import Record
from ..report.render import as_markdown, write_results
from .compare import compare
from .config import CompareConfig
from .turns import Progress


@dataclass(frozen=True)
class Group:
    """Rows of the same settings but for the method, which one comparison trains beside one dense network.

    Attributes:
        rows: of the table.
        config: the comparison.
    """

    rows: Sequence[Row]
    config: CompareConfig


@dataclass(frozen=True)
class TableComparison:
    """All that is run of a table.

    Attributes:
        table: of a paper.
        groups: in its order.
        left_out: rows that are not run, and why.
        output: folder for the results; each group has one of its own in it.
        scale: see `Recipe`.
    """

    table: Table
    groups: Sequence[Group]
    left_out: Mapping[str, str]
    output: Path
    scale: float | None


def table_comparison(given: Mapping[str, Any]) -> TableComparison:
    """What to run of the table that was asked for; settings that were given hold for all rows.

    Rows of other data than those given are left out: of a plain image folder the first ones of the table run.

    Raises:
        ConfigError: no such table, no data, or none of its rows can be run.
    """
    table, scale = find_table(given["table"]), given.get("scale")
    unfit = [key for key in ("recipe", "methods", "budgets", "stretch", "model") if given.get(key)]
    if unfit:
        raise ConfigError("a table brings its own", where=", ".join(unfit), todo="Leave it out, or --table")
    check_data(given, table.rows[0])
    output = given.get("output", CompareConfig.output)
    kinds = [row.data for row in table.rows]
    kind = given["data"].rpartition(":")[0]
    kind = kind if kind in kinds else kinds[0]
    left_out = {row.name: f"needs --{', --'.join(row.needs)}" for row in table.rows if row.needs}
    left_out |= {row.name: f"is of {row.data}" for row in table.rows if row.data != kind}
    apart: dict[str, list[Row]] = {}
    for row in table.rows:
        if row.name not in left_out:
            apart.setdefault(repr(_beside_method(settings_of(row, scale))), []).append(row)
    if not apart:
        raise ConfigError("no row of this table can be run", where=table.name, found=_told(left_out))
    groups = []
    for rows in apart.values():
        settings = _beside_method(settings_of(rows[0], scale))
        methods = [method for row in rows if (method := _method(row, scale)) != "Dense"]
        known = {entry.name for entry in fields(CompareConfig)}
        config = CompareConfig(
            **{
                **{key: value for key, value in settings.items() if key in known},
                **given,
                "recipe": f"{table.name}/{rows[0].name}",
                "methods": list(dict.fromkeys(methods)),
                "output": output / rows[0].name,
            }
        )
        groups.append(Group(rows, config))
    return TableComparison(table, groups, left_out, output, scale)


def run_table(comparison: TableComparison, progress: Progress) -> tuple[list[Record], list[str]]:
    """Train all rows, group by group; those that are finished are not run again.

    Each group leaves what `compare` leaves, in a folder of its own; the table is `results.json` and `summary.md`.

    Returns:
        A record a row, with `paper` and `measured`; and what stopped those that did not finish.
    """
    runs: dict[str, list[Record]] = {}
    dense: dict[str, list[Record]] = {}
    failures: list[str] = []
    for group in comparison.groups:
        with owned(group.config.output):
            records, failed = compare(group.config, progress, in_time=False)
        failures += failed
        if records:
            write_results(records, group.config.output)
        for row in group.rows:
            runs[row.name] = [each for each in records if each["method"] == _method(row, comparison.scale)]
            dense[row.name] = [each for each in records if each["method"] == "Dense"]
        rows = table_records(comparison, runs, dense)
        if rows:
            write_text(comparison.output / "results.json", json.dumps(rows, indent=1) + "\n")
            tested = f"Tested on {'; '.join(dict.fromkeys(row['protocol'] for row in rows))}."
            text = f"{as_markdown(table_rows(rows))}\n\n{tested} {footnote(comparison)}\n"
            write_text(comparison.output / "summary.md", text)
    return table_records(comparison, runs, dense), failures


def table_records(
    comparison: TableComparison, runs: Mapping[str, list[Record]], dense: Mapping[str, list[Record]]
) -> list[Record]:
    """One record for each row that has finished."""
    rows = [row for group in comparison.groups for row in group.rows if runs.get(row.name) and dense.get(row.name)]
    return [
        {
            "recipe": f"{comparison.table.name}/{row.name}",
            "method": _method(row, comparison.scale),
            "scale": comparison.scale,
            "data": runs[row.name][0]["data"],
            "protocol": runs[row.name][0]["protocol"],
            "seeds": [run["seed"] for run in runs[row.name]],
            "paper": dict(row.paper),
            "measured": measured(runs[row.name], runs.get(row.baseline or "") or dense[row.name]),
        }
        for row in rows
    ]


def table_rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """For each figure of the table two columns: the paper's, and ours; and ours of the best epoch.

    Of runs that are scaled the hours say nothing beside the paper's, and so small a step takes the time of its layers
    rather than of their channels: ours are the FLOPs beside the time.
    """
    printed = {key for record in records for key in record["paper"]}
    scaled = any(record["scale"] not in (None, 1) for record in records)
    ours = (printed | {"flop_speedup"}) - {"hours"} if scaled and "speedup" in printed else printed
    rows = []
    for record in records:
        row = {"row": record["recipe"].rpartition("/")[2]}
        for key, heading in FIGURES.items():
            for figures, whose, keys in ((record["paper"], "paper", printed), (record["measured"], "here", ours)):
                if key in keys:
                    row[f"{heading}, {whose}"] = _shown(figures.get(key))
        rows.append(row | {"best epoch %": _shown(record["measured"]["best"])})
    return rows


def footnote(comparison: TableComparison) -> str:
    """Scale, and what is not there."""
    scale = comparison.scale
    first = "At full scale." if scale is None or scale == 1 else f"Scaled by {scale:g}: not the paper's size."
    return f"{first} {_told(comparison.left_out)}".strip()


def _told(left_out: Mapping[str, str]) -> str:
    return "Not run: " + "; ".join(f"{name} ({why})" for name, why in left_out.items()) + "." if left_out else ""


def _shown(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def _beside_method(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "method"}


def _method(row: Row, scale: float | None) -> str:
    return settings_of(row, scale)["method"]

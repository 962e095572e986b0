"""What output folders of `train` and `compare` hold, read as data: nothing in them is run, and all of it is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError, MorphogenError, first_line
from ..machine.reading import MALFORMED, parse_json, read_text
from .fronts import FULL_LENGTH, Knot, Point, Speedup, front
from .headline import UNITS
from .records import Record, check_kind, check_record

T = TypeVar("T")

RESULTS, RUNS, FRONTS = "results.json", "runs.jsonl", "fronts.json"

MOST_RUNS = 10_000
"""Runs in one folder."""


@dataclass(frozen=True)
class Fronts:
    """What complete runs of several lengths came to.

    Attributes:
        knots: for each method and each of `seconds` and `flops`, its lengths, the cheapest first.
        speedups: at equal accuracy; empty where the comparison is not finished.
        seconds_of: what the seconds were taken of.
        end_to_end: as `headline_rows` takes it.
    """

    knots: dict[str, dict[str, list[Knot]]]
    speedups: list[Speedup]
    seconds_of: str
    end_to_end: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Output:
    """One output folder.

    Attributes:
        folder: of it.
        records: its runs; of several lengths, all of them.
        fronts: None where all runs are of one length.
    """

    folder: Path
    records: list[Record]
    fronts: Fronts | None

    @property
    def full(self) -> list[Record]:
        """The runs of full length."""
        return [record for record in self.records if record.get("budget", FULL_LENGTH) == FULL_LENGTH]


def read_output(folder: Path) -> Output:
    """Read one folder.

    Raises:
        ConfigError: it holds no runs, or a file in it is no such file.
    """
    results, runs, fronts = (folder / name for name in (RESULTS, RUNS, FRONTS))
    if results.is_file():
        records = _checked(results, lambda: _records(parse_json(read_text(results), nan=True)))
    elif runs.is_file():
        whole = read_text_of(runs).rpartition("\n")[0]  # a killed session may have begun a last line
        records = _checked(runs, lambda: _records([parse_json(line, nan=True) for line in whole.split("\n") if line]))
    else:
        raise ConfigError(
            "no runs are there",
            where=str(folder),
            expected=f"{RESULTS} or {RUNS}, which `morphogen train` and `morphogen compare` write",
            todo="Give the folder that a run had as --output",
        )
    found = None
    if fronts.is_file():
        found = _checked(fronts, lambda: _fronts(parse_json(read_text(fronts))))
    elif len({record.get("budget", FULL_LENGTH) for record in records}) > 1:
        found = _unfinished(records)
    return Output(folder, records, found)


def drawn(folder: Path, draw: Callable[[], T]) -> T:
    """What is made of a folder's runs; raises ConfigError where a record that was checked still does not fit."""
    return _checked(folder, draw)


def read_text_of(path: Path) -> str:
    """A text file of a bounded size; raises ConfigError."""
    return _checked(path, lambda: read_text(path))


def _checked(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except ConfigError:
        raise
    except (OSError, RecursionError, MorphogenError, *MALFORMED) as error:
        raise ConfigError(
            f"not the results of runs ({first_line(error)})",
            where=str(path),
            todo="It is damaged, or another program's; choose another folder",
        ) from error


def _records(found: Any) -> list[Record]:
    if type(found) is not list or not found or len(found) > MOST_RUNS:
        raise ValueError(f"a list of 1 to {MOST_RUNS:,} runs is expected")
    for record in found:
        check_record(record)
        if not math.isfinite(record["accuracy"]):
            raise ValueError("accuracy is not finite")
    return found


def _fronts(content: Any) -> Fronts:
    check_kind(content, dict[str, Any], "fronts.json")
    check_kind(content["fronts"], dict[str, dict[str, list[Knot]]], "fronts")
    knots = {
        method: {cost: [Knot(**knot) for knot in by_cost[cost]] for cost in UNITS}
        for method, by_cost in content["fronts"].items()
    }
    if not knots or not all(each and all(k.cost > 0 for k in each) for by in knots.values() for each in by.values()):
        raise ValueError("a front without a run, or at no cost")
    pairs = dict(content.get("end_to_end") or {})
    check_kind(pairs, dict[str, list[float]], "end_to_end")
    end_to_end = {method: (float(a), float(b)) for method, (a, b) in pairs.items()}
    return Fronts(knots, [_speedup(each) for each in content["speedups"]], str(content["seconds_of"]), end_to_end)


def _speedup(data: Any) -> Speedup:
    """The inverse of `Speedup.to_dict`, where no bound is None."""
    check_kind({"method": data["method"]}, dict[str, str], "speedups")
    check_kind([data[key] for key in ("below", "accuracy")], list[float], "speedups")
    ends = [data["low"], data["high"], *(data["interval"] or (None, None))]
    for end in ends:
        check_kind(end, float | None, "speedups")
    low, high, least, most = (
        (0.0 if n % 2 == 0 else math.inf) if end is None else float(end) for n, end in enumerate(ends)
    )
    if data["cost"] not in UNITS or type(data["reached"]) is not bool:
        raise ValueError("a speedup of another kind")
    interval = None if data["interval"] is None else (least, most)
    return Speedup(
        data["method"],
        data["cost"],
        float(data["below"]),
        float(data["accuracy"]),
        low,
        high,
        interval,
        data["reached"],
    )


def _unfinished(records: Sequence[Record]) -> Fronts | None:
    """Fronts of the runs that are there; those that ran beside others have no time of their own."""
    points = [
        Point(r["method"], _length(r), r["seed"], r["accuracy"], r["training_seconds"], r["flops"])
        for r in records
        if not r.get("timed_apart")
    ]
    methods = dict.fromkeys(point.method for point in points)
    knots = {method: {cost: front(points, method, cost) for cost in UNITS} for method in methods}
    return Fronts(knots, [], "the runs themselves; the comparison is not finished", {}) if knots else None


def _length(record: Record) -> float:
    """Of a run, as a share of the dense network's full one."""
    stretch = 1.0 if record["method"] == "Dense" else record.get("recipe", {}).get("stretch", 1.0)
    return float(record.get("budget", FULL_LENGTH)) * float(stretch)

"""Records of runs, as they are read from and written to files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..search.candidates import Found
from .ledger import Epoch, MorphEvent, PrunedRun, StageCost

Record = dict[str, Any]

KEPT: dict[str, Any] = {
    "method": str,
    "model": str,
    "data": str,
    "seed": int,
    "accuracy": float,
    "stopped": str | None,
    "training_seconds": float,
    "flops": int,
    "seconds": dict[str, float],
    "epochs": list[Epoch],
    "morphs": list[MorphEvent],
    "stages": list[StageCost],
}
"""What every record of a finished run has."""

ADDED: dict[str, Any] = {
    "samples": int,
    "metric": str,
    "peak_memory": int,
    "protocol": str,
    "average": float | None,
    "tested_at": dict[str, Any] | None,
    "kept": dict[str, Any] | None,
    "predicted_speedup": float | None,
    "schedule": dict[str, Any] | None,
    "history": list[dict[str, Any]],
    "dense": dict[str, Any] | None,
    "rescues": list[dict[str, Any]],
    "settings": dict[str, Any],
    "searches": list[dict[str, Any]],
    "pruned": PrunedRun | None,
    "budget": float,
    "timed_apart": bool,
    "recipe": dict[str, Any],
    "environment": dict[str, Any],
}
"""What came later, or is not of every run."""


def check_record(record: Any) -> None:
    """Raise ValueError, or what code raises that meets other data, unless tables and pictures can be made of it."""
    check_kind(record, dict[str, Any], "the record")
    for key, kind in (KEPT | ADDED).items():
        if key in KEPT or key in record:
            check_kind(record[key], kind, key)
    if not (record["training_seconds"] > 0 and record["flops"] > 0 and record["epochs"] and record["stages"]):
        raise ValueError("nothing was trained")
    for stage in [*record["stages"], *([record["pruned"]["dense"]] if record.get("pruned") else [])]:
        if stage["batch_size"] < 1 or stage.get("images", 1) < 0 or stage.get("steps", 1) < 0:
            raise ValueError("a stage of no images")
    for search in record.get("searches", ()):
        Found.from_record(search)
        if not 0 <= search["chosen"] < len(search["candidates"]):
            raise ValueError("a search that chose none of its candidates")


def check_kind(value: Any, kind: Any, where: str) -> None:
    """Raise ValueError unless a value is of a kind of JSON, or has what a dataclass needs; numbers must be finite."""
    if is_dataclass(kind):
        check_kind(value, dict[str, Any], where)
        kinds = get_type_hints(kind)
        for field in fields(kind):
            needed = field.default is MISSING and field.default_factory is MISSING
            if needed or field.name in value:
                check_kind(value[field.name], kinds[field.name], f"{where}.{field.name}")
        return
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # with None
        if value is not None:
            check_kind(value, inner[0], where)
        return
    if kind is Any:
        return
    plain = {float: (int, float), tuple: (list,)}.get(origin or kind, (origin or kind,))
    number = isinstance(value, (int, float))
    if type(value) not in plain or (number and not -(2.0**63) < value < 2.0**63):
        raise ValueError(f"{where} is {str(value)[:40]}")
    if origin is not None:
        each_of: list[Any] = list(value.values() if isinstance(value, dict) else value)  # pyright: ignore
        for each in each_of:
            check_kind(each, inner[-1] if origin is dict else inner[0], where)


def by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of each method, in the order of their first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["method"], []).append(record)
    return groups


def measured(records: Sequence[Record]) -> str:
    """What accuracy is of: `accuracy`, `mIoU`; of several kinds, all of them."""
    return ", ".join(dict.fromkeys(record.get("metric", "accuracy") for record in records))


def by_file_name(method: str) -> str:
    """A method as it may stand in a file's name."""
    return re.sub(r"[^A-Za-z0-9.=]+", "_", method).strip("_")

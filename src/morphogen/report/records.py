"""Records of runs, as they are read from and written to files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]


def by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of each method, in the order of their first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["method"], []).append(record)
    return groups


def by_file_name(method: str) -> str:
    """A method as it may stand in a file's name."""
    return re.sub(r"[^A-Za-z0-9.=]+", "_", method).strip("_")

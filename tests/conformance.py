"""The table every growth operator and method joins by one row."""

from __future__ import annotations

from dataclasses import dataclass

import morphogen


@dataclass(frozen=True)
class OperatorRow:
    """`name` in the operators' table; whether growing by it leaves the function unchanged."""

    name: str
    preserves_function: bool = False


@dataclass(frozen=True)
class MethodRow:
    """A method and the widths (share of channels in `conv1` of `nets.Residual`) of each of 8 epochs."""

    method: morphogen.Method
    channels: tuple[int, ...]


OPERATORS = [
    OperatorRow("orthogonal"),
    OperatorRow("random"),
    OperatorRow("replicate"),
]

METHODS = [
    MethodRow(morphogen.Dense(), (12,) * 8),
    MethodRow(morphogen.NetworkExpansion(width=0.5, stages=4), (6, 6, 8, 8, 10, 10, 12, 12)),
    MethodRow(morphogen.NetworkExpansion(width=0.5, stages=3, operator="random"), (6, 6, 6, 9, 9, 9, 12, 12)),
    MethodRow(morphogen.NetworkExpansion(width=0.5, stages=2, multiple_of=4), (8, 8, 8, 8, 12, 12, 12, 12)),
    MethodRow(morphogen.NetworkExpansion(width=0.25, stages=1), (12,) * 8),
]

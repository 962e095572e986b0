"""The table every growth operator, depth operator and method joins by one row."""

from __future__ import annotations

from dataclasses import dataclass

import morphogen


@dataclass(frozen=True)
class OperatorRow:
    """`name` in the operators' table; whether growing by it leaves the function unchanged."""

    name: str
    preserves_function: bool = False


@dataclass(frozen=True)
class DepthRow:
    """`name` in the table of depth operators.

    Attributes:
        sources: for growth of six blocks to nine, the old block that each is or comes from; None for a block
            that comes from none.
        averaged: the blocks that come from the momentum network.
        preserves_function: whether growing by it leaves the function unchanged.
    """

    name: str
    sources: tuple[int | None, ...]
    averaged: tuple[int, ...] = ()
    preserves_function: bool = False


@dataclass(frozen=True)
class MethodRow:
    """A method, and channels, blocks and side of the image in each of 8 epochs of `nets.Tower`."""

    method: morphogen.Method
    channels: tuple[int, ...] = (12,) * 8
    blocks: tuple[int, ...] = (4,) * 8
    side: tuple[int, ...] = (8,) * 8


OPERATORS = [
    OperatorRow("orthogonal"),
    OperatorRow("random"),
    OperatorRow("replicate"),
]

BETWEEN = (0, 1, 2, 3, 3, 4, 4, 5, 5)
ON_TOP = (0, 1, 2, 3, 4, 5, 0, 1, 2)
ALL = tuple(range(9))

DEPTH_OPERATORS = [
    DepthRow("random", (0, 1, 2, 3, 4, 5, None, None, None)),
    DepthRow("stack", ON_TOP),
    DepthRow("interpolate", BETWEEN),
    DepthRow("identity", BETWEEN, preserves_function=True),
    DepthRow("rezero", BETWEEN, preserves_function=True),
    DepthRow("momentum", BETWEEN, averaged=(4, 6, 8)),
    DepthRow("mogrow", BETWEEN, averaged=ALL),
    DepthRow("mostack", ON_TOP, averaged=ALL),
]

METHODS = [
    MethodRow(morphogen.Dense()),
    MethodRow(morphogen.NetworkExpansion(width=0.5, stages=4), channels=(6, 6, 8, 8, 10, 10, 12, 12)),
    MethodRow(morphogen.NetworkExpansion(width=0.5, stages=3, operator="random"), channels=(6, 6, 6, 9, 9, 9, 12, 12)),
    MethodRow(morphogen.NetworkExpansion(width=0.5, stages=2, multiple_of=4), channels=(8, 8, 8, 8, 12, 12, 12, 12)),
    MethodRow(morphogen.NetworkExpansion(width=0.25, stages=1)),
    MethodRow(morphogen.NetworkExpansion(depth=0.5, stages=2), blocks=(2, 2, 2, 2, 4, 4, 4, 4)),
    MethodRow(
        morphogen.NetworkExpansion(width=0.5, depth=0.5, stages=2, depth_operator="identity"),
        channels=(6, 6, 6, 6, 12, 12, 12, 12),
        blocks=(2, 2, 2, 2, 4, 4, 4, 4),
    ),
    MethodRow(morphogen.Prog(), blocks=(2, 2, 3, 3, 3, 3, 4, 4), side=(4, 4, 5, 5, 7, 7, 8, 8)),
    MethodRow(morphogen.StackBERT(), blocks=(2, 2, 2, 2, 4, 4, 4, 4)),
    MethodRow(morphogen.ProgStack(), blocks=(1, 2, 2, 4, 4, 4, 4, 4)),
    MethodRow(morphogen.ProgStack(depth_operator="mostack"), blocks=(1, 2, 2, 4, 4, 4, 4, 4)),
    MethodRow(morphogen.EfficientTrain(), side=(3, 3, 6, 6, 6, 7, 8, 8)),
    MethodRow(morphogen.ProgressiveResizing(stages=2), side=(4, 4, 4, 4, 8, 8, 8, 8)),
    MethodRow(
        morphogen.Combined((morphogen.Prog(stages=2), morphogen.NetworkExpansion(width=0.5, stages=4))),
        channels=(6, 6, 8, 8, 10, 10, 12, 12),
        blocks=(2, 2, 2, 2, 4, 4, 4, 4),
        side=(4, 4, 4, 4, 8, 8, 8, 8),
    ),
]

"""The table every growth operator, depth operator and method joins by one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import morphogen

from planted import Size, found_schedule


@dataclass(frozen=True)
class OperatorRow:
    """`name` in the operators' table.

    Attributes:
        preserves_function: growing by it leaves the function unchanged.
        rescales: it divides the old weights that read copied channels.
    """

    name: str
    preserves_function: bool = False
    rescales: bool = False


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
    """A method, and channels, blocks and side of the image in each epoch that `nets.Tower` trains, in a run of 8.

    Attributes:
        method: or what makes it, given a folder to write to.
        found: the size that wins in each of its searches.
    """

    method: morphogen.Method | Callable[[Path], morphogen.Method]
    channels: tuple[int, ...] = (12,) * 8
    blocks: tuple[int, ...] = (4,) * 8
    side: tuple[int, ...] = (8,) * 8
    found: tuple[Size, ...] = ()

    def made(self, folder: Path) -> morphogen.Method:
        return self.method if isinstance(self.method, morphogen.Method) else self.method(folder)

    @property
    def name(self) -> str:
        return repr(self.method) if isinstance(self.method, morphogen.Method) else self.method.__name__


OPERATORS = [
    OperatorRow("orthogonal"),
    OperatorRow("quiet", preserves_function=True),
    OperatorRow("random"),
    OperatorRow("replicate"),
    OperatorRow("net2net", preserves_function=True, rescales=True),
    OperatorRow("fpi", preserves_function=True, rescales=True),
    OperatorRow("bert2bert", rescales=True),
    OperatorRow("restore"),
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
    DepthRow("restore", (0, 1, 2, 3, None, 4, None, 5, None)),
]


def retrain(folder: Path) -> morphogen.Method:
    return morphogen.Retrain(file=str(found_schedule(folder, [(12, 2, 4), (12, 3, 5), (12, 3, 7)])))


METHODS = [
    MethodRow(morphogen.Dense()),
    MethodRow(morphogen.DynamicBatch(step=1)),
    MethodRow(morphogen.AdaptRates()),
    MethodRow(
        morphogen.Combined((morphogen.AdaptRates(), morphogen.NetworkExpansion(width=0.5, stages=2))),
        channels=(6, 6, 6, 6, 12, 12, 12, 12),
    ),
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
    MethodRow(morphogen.Net2Net(), channels=(6, 6, 6, 6, 12, 12, 12, 12)),
    MethodRow(morphogen.Net2Net(stages=3, noise=0), channels=(6, 6, 6, 9, 9, 9, 12, 12)),
    MethodRow(morphogen.Bert2BERT(), channels=(6, 6, 6, 6, 12, 12, 12, 12)),
    MethodRow(
        morphogen.Bert2BERT(depth=0.5, operator="fpi"),
        channels=(6, 6, 6, 6, 12, 12, 12, 12),
        blocks=(2, 2, 2, 2, 4, 4, 4, 4),
    ),
    MethodRow(morphogen.Prog(), blocks=(2, 2, 3, 3, 3, 3, 4, 4), side=(4, 4, 5, 5, 7, 7, 8, 8)),
    MethodRow(morphogen.GrowOnce(), side=(3, 3, 3, 4, 4, 5, 6, 8)),
    MethodRow(
        morphogen.GrowOnce(at=0.5, width=0.5, depth=0.25, resolution=0.5, multiple_of=1),
        channels=(6, 6, 6, 6, 12, 12, 12, 12),
        blocks=(1, 1, 1, 1, 4, 4, 4, 4),
        side=(4, 4, 4, 4, 8, 8, 8, 8),
    ),
    MethodRow(
        morphogen.GrowOnce(pretrained=True, at=0.5, width=0.5, depth=0.5, resolution=0.5, multiple_of=1),
        channels=(6, 6, 6, 6, 12, 12, 12, 12),
        blocks=(2, 2, 2, 2, 4, 4, 4, 4),
        side=(4, 4, 4, 4, 8, 8, 8, 8),
    ),
    MethodRow(
        morphogen.NetworkExpansion(width=0.5, stages=4, operator="restore", choose="importance"),
        channels=(6, 6, 8, 8, 10, 10, 12, 12),
    ),
    # Eight of twelve channels have no more than half of the FLOPs, nine have.
    MethodRow(morphogen.PruneEarly(at=0.25, multiple_of=1), channels=(12, 12, 8, 8, 8, 8, 8, 8)),
    MethodRow(morphogen.StackBERT(), blocks=(2, 2, 2, 2, 4, 4, 4, 4)),
    MethodRow(morphogen.ProgStack(), blocks=(1, 2, 2, 4, 4, 4, 4, 4)),
    MethodRow(morphogen.ProgStack(depth_operator="mostack"), blocks=(1, 2, 2, 4, 4, 4, 4, 4)),
    MethodRow(morphogen.EfficientTrain(), side=(3, 3, 3, 3, 6, 6, 6, 8)),
    MethodRow(morphogen.ProgressiveUnfreezing()),
    MethodRow(morphogen.AutoProgZero(), found=((12, 4, 8),) * 3),
    MethodRow(morphogen.ProgressiveResizing(stages=2), side=(4, 4, 4, 4, 8, 8, 8, 8)),
    MethodRow(
        morphogen.Combined((morphogen.Prog(stages=2), morphogen.NetworkExpansion(width=0.5, stages=4))),
        channels=(6, 6, 8, 8, 10, 10, 12, 12),
        blocks=(2, 2, 2, 2, 4, 4, 4, 4),
        side=(4, 4, 4, 4, 8, 8, 8, 8),
    ),
    # Blocks of AutoProg's levels: 2, 3, 4; sides: 4, 5, 7, 8; every other epoch is the supernet's.
    MethodRow(
        morphogen.AutoProg(stages=4, search_epochs=1, scoring="literal"),
        blocks=(4, 2, 4, 3, 4, 3, 4, 4),
        side=(8, 4, 5, 5, 7, 7, 8, 8),
        found=((12, 2, 4), (12, 3, 5), (12, 3, 7)),
    ),
    MethodRow(
        morphogen.AutoProg(stages=4, search_epochs=1, depth_operator="rezero", recycle=False, scoring="literal"),
        channels=(12,) * 11,
        blocks=(4, 2, 2, 4, 3, 3, 4, 4, 4, 4, 4),
        side=(8, 4, 4, 5, 5, 5, 7, 7, 7, 8, 8),
        found=((12, 2, 4), (12, 3, 5), (12, 4, 7)),
    ),
    MethodRow(
        morphogen.AutoProg(stages=2, dimensions=("width", "depth"), depth_operator="interpolate", scoring="literal"),
        channels=(12, 12, 10, 10, 12, 12, 12, 12),
        blocks=(4, 4, 3, 3, 4, 4, 4, 4),
        found=((10, 3, 8),),
    ),
    # Whole: no more searches.
    MethodRow(morphogen.AutoProg(stages=4, search_epochs=1, scoring="literal"), found=((12, 4, 8),)),
    MethodRow(morphogen.Supernet(dimensions=("depth", "resolution", "width"))),
    # What these take out is read off the weights, which `test_prunetrain.py` plants; here nothing is sparse.
    MethodRow(morphogen.PruneTrain(interval=2)),
    MethodRow(morphogen.PruneTrain(interval=3, start=0.25, multiple_of=4, proximal=True)),
    MethodRow(morphogen.PruneTrain(interval=1, folded=True, target=0.5, finetune=0.3, proximal=True)),
    MethodRow(morphogen.OneTime()),
    MethodRow(morphogen.SSL()),
    MethodRow(morphogen.GrowThenPrune(start=0.5), channels=(6, 6, 9, 9, 12, 12, 12, 12)),
    MethodRow(
        morphogen.Combined((morphogen.ProgStack(), morphogen.PruneTrain(interval=2))), blocks=(1, 2, 2, 4, 4, 4, 4, 4)
    ),
    MethodRow(retrain, blocks=(2, 2, 3, 3, 3, 3, 4, 4), side=(4, 4, 5, 5, 7, 7, 8, 8)),
]

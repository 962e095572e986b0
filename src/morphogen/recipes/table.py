"""What a recipe is: a row of a paper's table, the settings that train it, and the figures that the paper prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]
"""Of `morphogen train`, by their names."""

FIGURES = {
    "accuracy": "top-1 %",
    "accuracy_288": "top-1 % at 288",
    "growth_accuracy": "top-1 % an epoch after growth",
    "gap": "gap (points)",
    "finetuned_gap": "gap fine-tuned",
    "hours": "hours",
    "flops": "GFLOPs a step",
    "flop_speedup": "FLOP speedup",
    "speedup": "speedup",
    "training_flops": "training FLOPs %",
    "training_time": "time %",
    "training_time_v100": "time % on V100",
    "inference_flops": "inference FLOPs %",
    "inference_speedup_10": "inference speedup at 10",
    "inference_speedup_100": "inference speedup at 100",
    "removed_layers": "layers removed",
    "miou": "mIoU %",
    "depth": "depths",
    "tokens": "tokens",
    "randaugment": "RandAugment",
    "erasing": "erasing",
    "drop_path": "drop path",
}
"""What tables print, and how it is headed. FLOPs a step are of one image, in multiply-adds; hours are those of all GPUs
together where the paper counts them so."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: unique in its table.
        settings: of its run, `method` among them; the paper's, and where it is silent those of what it cites.
        paper: what the paper prints, by the names of `FIGURES`.
        data: what the paper trains it on: `cifar10`, `cifar100`, `imagenet`, `cityscapes`.
        baseline: the row that speedup and gap are against; by default the dense run of the same settings.
        needs: settings that it does not run without, beside its data, and what they are to be.
        note: what the paper does not say, or what else is to be known.
    """

    name: str
    settings: Settings
    paper: Mapping[str, float | str]
    data: str
    baseline: str | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Table:
    """One table of a paper.

    Attributes:
        paper: `network-expansion`, `autoprog` or `prunetrain`.
        number: as the paper numbers it.
        title: what it shows.
        hardware: what the paper's times are of.
        rows: in the paper's order.
    """

    paper: str
    number: str
    title: str
    hardware: str
    rows: Sequence[Row] = field(repr=False)

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"{self.paper}/{self.number}"

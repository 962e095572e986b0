"""What is left of each layer at the end (PruneTrain, Figure 12)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..records import Record, by_method

NAMED = 32
"""Layers up to which their names are written out."""


def draw_density(runs: Sequence[Record], path: Path) -> None:
    """Density of channels (input density times output density) and of weights by layer, one panel a method.

    The first run of a method stands for it.
    """
    from matplotlib.figure import Figure

    firsts = [of_method[0] for of_method in by_method(runs).values()]
    layers = [density["layer"] for density in firsts[0]["pruned"]["density"]]
    figure = Figure(figsize=(max(7.0, min(16.0, 0.25 * len(layers))), 2.6 * len(firsts) + 1), layout="constrained")
    panels = figure.subplots(len(firsts), 1, squeeze=False, sharex=True)[:, 0]
    for axes, run in zip(panels, firsts, strict=True):
        for key, label, colour in (
            ("channels", "channels", "lightsteelblue"),
            ("weights", f"weights of at least {run['pruned']['threshold']:g}", "steelblue"),
        ):
            axes.bar(range(len(layers)), [layer[key] for layer in run["pruned"]["density"]], color=colour, label=label)
        axes.set_ylim(0, 1.3)  # the legend is above the bars
        axes.set_ylabel("density")
        axes.set_title(f"{run['method']}, {run['model']} on {run['data']}, seed {run['seed']}", fontsize=9)
        axes.legend(fontsize=8, loc="upper right", ncols=2)
    if len(layers) <= NAMED:
        panels[-1].set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
    else:
        panels[-1].set_xlabel("layer")
    figure.savefig(path, dpi=130)

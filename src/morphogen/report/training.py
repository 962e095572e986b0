"""One run while it trains: its figures epoch by epoch, in words and as a curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..dense.subnet import SubNetwork

TRAINING_PICTURE = "training.png"


def extent_of(part: SubNetwork, dense: SubNetwork) -> str:
    """A sub-network in a few words: `1/2 width, 4/8 blocks, 20 px`; `full` for the dense one.

    Width is the share of all units of all channel groups.
    """
    words = []
    mine, whole = (sum(map(len, each.channels.values())) for each in (part, dense))
    if mine != whole:
        words.append(f"{mine / whole:.2f} width")
    blocks, all_blocks = (sum(map(len, each.blocks.values())) for each in (part, dense))
    if blocks != all_blocks:
        words.append(f"{blocks}/{all_blocks} blocks")
    if part.resolution and part.resolution != dense.resolution:
        sides = dict.fromkeys(part.resolution)
        words.append("x".join(map(str, sides)) + " px")
    return ", ".join(words) or "full"


def draw_training(record: dict[str, Any], path: Path) -> None:
    """`training.png`: training loss and test score over training time, every change of size marked.

    Args:
        record: of a run, see `Ledger.record`; one without epochs leaves nothing.
        path: the file.
    """
    from matplotlib.figure import Figure

    epochs = record["epochs"]
    if not epochs:
        return
    seconds = [epoch["seconds"] for epoch in epochs]
    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    metric = record.get("metric", "accuracy")
    for axes, key, label in zip(panels, ("loss", "accuracy"), ("training loss", f"test {metric} (%)"), strict=True):
        axes.plot(seconds, [epoch[key] for epoch in epochs], color="C0", marker=".", linewidth=1.3)
        for morph in record["morphs"]:
            axes.axvline(morph["total_seconds"], color="0.5", linestyle="--", linewidth=0.9)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    for morph in record["morphs"]:
        place = (morph["total_seconds"], 1.0)
        panels[0].annotate(
            f"epoch {morph['epoch'] + 1}", place, xycoords=("data", "axes fraction"), rotation=90, fontsize=7,
            ha="right", va="top",
        )  # fmt: skip
    panels[1].set_xlabel("training time (s), evaluation left out; dashed: the network changes its size")
    panels[0].set_title(f"{record['model']} on {record['data']}, {record['method']}", fontsize=9)
    figure.savefig(path, dpi=130)

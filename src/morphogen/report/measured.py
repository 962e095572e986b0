"""What papers' tables print, as it was measured here."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .records import Record


def measured(runs: Sequence[Record], dense: Sequence[Record]) -> dict[str, float]:
    """Figures by the names that recipes have for them: means over the seeds.

    Args:
        runs: of one row, a seed each.
        dense: what they are against, of the same seeds or of others.
    """
    found = [_of_run(run) for run in runs]
    figures = {key: statistics.fmean(each[key] for each in found) for key in found[0]}
    seconds, flops, accuracy = (statistics.fmean(run[key] for run in dense) for key in AGAINST)
    own_seconds, own_flops, own_accuracy = (statistics.fmean(run[key] for run in runs) for key in AGAINST)
    return figures | {
        "gap": own_accuracy - accuracy,
        "finetuned_gap": own_accuracy - accuracy,
        "speedup": seconds / own_seconds,
        "training_time": 100 * own_seconds / seconds,
        "flop_speedup": flops / own_flops,
        "training_flops": 100 * own_flops / flops,
    }


AGAINST = ("training_seconds", "flops", "accuracy")


def _of_run(run: Record) -> dict[str, float]:
    """Figures of one run by itself."""
    figures = {
        "accuracy": run["accuracy"],
        "miou": run["accuracy"],  # of the run's metric, whatever it is
        "hours": run["training_seconds"] / 3600,
        "flops": run["flops"] / run["samples"] / 6e9,  # a step is three passes, a multiply-add two operations
        "best": max(epoch["accuracy"] for epoch in run["epochs"]),
    }
    growth = first_epoch_of_second_stage(run)
    if growth is not None:
        figures["growth_accuracy"] = run["epochs"][growth]["accuracy"]
    if run.get("tested_at"):
        figures["accuracy_288"] = run["tested_at"]["accuracy"]
    if (pruned := run.get("pruned")) is not None:
        last = run["stages"][-1]
        figures["inference_flops"] = 100 * last["inference_flops"] / pruned["dense"]["inference_flops"]
        figures["removed_layers"] = pruned["dense"]["layers"] - last["layers"]
        for speed in pruned["inference"]:
            figures[f"inference_speedup_{speed['batch']}"] = speed["pruned"] / speed["dense"]
    return figures


def first_epoch_of_second_stage(run: Record) -> int | None:
    """The epoch that the first growth begins; a search that ends shrinks the network. None without one."""
    for before, after in zip(run["stages"], run["stages"][1:], strict=False):
        if after["training_flops"] > before["training_flops"] and not before.get("searching"):
            return after["epoch"] if after["epoch"] < len(run["epochs"]) else None
    return None

"""What pruning saved as a table, one row a method (PruneTrain, Tables 1 to 3)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from ..records import Record, by_method
from .shares import at_the_end, communicated, over_training, pruned_runs

MODELLED = 128
"""Workers of the modelled all-reduce; the share is the same for any other number."""


def saving_rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """One row a method that pruned, means over its seeds; none where no finished run pruned.

    Training FLOPs and the bytes of normalisation and of the all-reduce are of all steps, inference FLOPs and
    parameters of the network at the end, all in percent of the dense network's; images a second are followed by the
    speedup.
    """
    return [
        {
            "method": method,
            "training FLOPs": _percent(runs, lambda run: over_training(run, "training_flops")),
            "inference FLOPs": _percent(runs, lambda run: at_the_end(run, "inference_flops")),
            "norm. bytes": _percent(runs, lambda run: over_training(run, "normalisation")),
            "all-reduce bytes": _percent(runs, lambda run: communicated(run, MODELLED)),
            "parameters": _percent(runs, lambda run: at_the_end(run, "parameters")),
            "layers removed": _removed(runs),
            **_speeds(runs),
        }
        for method, runs in by_method(pruned_runs(records)).items()
    ]


def _percent(runs: Sequence[Record], share: Callable[[Record], float | None]) -> str:
    shares = [each for each in map(share, runs) if each is not None]
    return f"{100 * statistics.fmean(shares):.1f}" if shares else ""


def _removed(runs: Sequence[Record]) -> str:
    dense = runs[0]["pruned"]["dense"]["layers"]
    return f"{dense - statistics.fmean(run['stages'][-1]['layers'] for run in runs):.3g} of {dense}"


def _speeds(runs: Sequence[Record]) -> dict[str, str]:
    cells = {}
    for speeds in zip(*(run["pruned"]["inference"] for run in runs), strict=True):
        dense, pruned = (statistics.fmean(speed[key] for speed in speeds) for key in ("dense", "pruned"))
        cells[f"images/s at {speeds[0]['batch']}"] = f"{pruned:.0f} ({pruned / dense:.2f}x)"
    return cells

"""Lines over epochs: the FLOPs, the memory and the communication of a step (PruneTrain, Figures 2, 9 and 11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...cost.communication import WORKERS, run_bytes
from ..records import Record, by_method
from .rows import MODELLED
from .shares import (
    bytes_of_a_step,
    bytes_of_an_epoch,
    communicated,
    epochs_of,
    flops_of_a_step,
    steps_of,
    trained_stages,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB, GIB = 2**20, 2**30


def draw_flops(runs: Sequence[Record], path: Path) -> None:
    """FLOPs of a training step as a share of the dense network's, one line a run (Figure 2a)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4 + _legend_height(runs)), layout="constrained")
    axes = figure.subplots()
    _draw_shares(axes, runs, flops_of_a_step, "training FLOPs of a step")
    axes.set_title(_subject(runs), fontsize=9)
    figure.legend(fontsize=8, loc="outside lower center")
    figure.savefig(path, dpi=130)


def draw_memory(runs: Sequence[Record], path: Path) -> None:
    """Memory of a training step, one line a run, and the batch size wherever it changes (Figure 9).

    The dense network's is marked where a run that pruned has noted it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4 + _legend_height(runs)), layout="constrained")
    axes = figure.subplots()
    _draw_stages(axes, runs, lambda run: [stage["memory"] / MIB for stage in trained_stages(run)])
    dense = next((run["pruned"]["dense"]["memory"] for run in runs if run.get("pruned")), None)
    if dense is not None:
        axes.axhline(dense / MIB, color="gray", linestyle="--", linewidth=1, label="dense")
    for run in runs:
        stages = trained_stages(run)
        batches = [stage["batch_size"] for stage in stages]
        for stage, before, batch in zip(stages, [None, *batches], batches, strict=False):
            if batch != before:
                place = (stage["epoch"], stage["memory"] / MIB)
                axes.annotate(f"batch {batch}", place, textcoords="offset points", xytext=(2, 4), fontsize=7)
    axes.set_ylabel("memory of a training step (MiB)")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set_title(_subject(runs), fontsize=9)
    figure.legend(fontsize=8, loc="outside lower center")
    figure.savefig(path, dpi=130)


def draw_communication(runs: Sequence[Record], path: Path) -> None:
    """Bytes of the modelled all-reduce: of a step, of an epoch, and by the number of workers (Figure 11).

    The first two panels are shares of the dense network's, which are the same for any number of workers.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4 + _legend_height(runs)), layout="constrained")
    step, epoch, scale = figure.subplots(1, 3)
    _draw_shares(step, runs, lambda run: bytes_of_a_step(run, MODELLED), "all-reduce bytes of a step")
    _draw_shares(epoch, runs, lambda run: bytes_of_an_epoch(run, MODELLED), "all-reduce bytes of an epoch")
    _draw_workers(scale, [of_method[0] for of_method in by_method(runs).values()])
    figure.legend(*scale.get_legend_handles_labels(), fontsize=8, loc="outside lower center")
    figure.suptitle(f"{_subject(runs)}: hierarchical ring all-reduce, modelled", fontsize=9)
    figure.savefig(path, dpi=130)


def _draw_workers(axes: Axes, runs: Sequence[Record]) -> None:
    """Bytes of all workers in a mean epoch: the dense network's and each run's, and what share of them that is."""
    width = 0.8 / (len(runs) + 1)
    for i, run in enumerate([None, *runs]):
        totals = [workers * run_bytes(steps_of(run or runs[0], dense=run is None), workers) for workers in WORKERS]
        axes.bar(
            [place + (i - len(runs) / 2) * width for place in range(len(WORKERS))],
            [total / epochs_of(run or runs[0])[-1] / GIB for total in totals],
            width,
            color="lightgray" if run is None else f"C{i - 1}",
            label="dense" if run is None else f"{run['method']}: {communicated(run, MODELLED):.0%}",
        )
    axes.set_xticks(range(len(WORKERS)), [str(workers) for workers in WORKERS])
    axes.set_xlabel("workers")
    axes.set_ylabel("all-reduce of all workers, GiB an epoch")


def _draw_shares(axes: Axes, runs: Sequence[Record], shares: Callable[[Record], list[float]], what: str) -> None:
    """Lines that begin at the dense network's, marked at 1."""
    _draw_stages(axes, runs, shares)
    axes.axhline(1, color="gray", linestyle="--", linewidth=1, label="dense")
    axes.set_ylabel(f"{what}, share of dense")
    axes.set_ylim(0, 1.15)


def _draw_stages(axes: Axes, runs: Sequence[Record], values: Callable[[Record], list[float]]) -> None:
    """A line of steps a run, one level a stage; the runs of a method have its colour."""
    for i, of_method in enumerate(by_method(runs).values()):
        for run in of_method:
            levels = values(run)
            axes.plot(
                epochs_of(run),
                [*levels, levels[-1]],
                drawstyle="steps-post",
                color=f"C{i}",
                alpha=0.8,
                label=run["method"] if run is of_method[0] else None,
            )
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)


def _legend_height(runs: Sequence[Record]) -> float:
    """Inches that a legend with a line for each method takes below the picture."""
    return 0.17 * (len(by_method(runs)) + 1)


def _subject(runs: Sequence[Record]) -> str:
    return f"{runs[0]['model']} on {runs[0]['data']}"

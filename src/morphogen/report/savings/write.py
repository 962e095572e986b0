"""The pictures of what pruning and larger batches saved, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..records import Record, by_file_name
from .density import draw_density
from .over_epochs import draw_communication, draw_flops, draw_memory
from .shares import modelled_runs, pruned_runs
from .sparsity_map import draw_sparsity

PICTURES = ("flops.png", "memory.png", "density.png", "communication.png", "sparsity_*.png")
"""All that `draw_savings` may write."""


def draw_savings(records: Sequence[Record], folder: Path) -> None:
    """Draw what the finished runs saved that pruned, `sparsity_*.png` for each; nothing where there are none.

    `memory.png` is of all finished runs, pruned or not, in which the memory of every stage is known.
    """
    modelled = modelled_runs(records)
    if modelled:
        draw_memory(modelled, folder / "memory.png")
    runs = pruned_runs(records)
    if not runs:
        return
    draw_flops(runs, folder / "flops.png")
    draw_density(runs, folder / "density.png")
    draw_communication(runs, folder / "communication.png")
    for run in (run for run in runs if run["pruned"]["sparsity"]):
        draw_sparsity(run, folder / f"sparsity_{by_file_name(run['method'])}_{run['seed']}.png")

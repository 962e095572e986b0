"""The file that a run leaves: its network's weights, and what `morphogen export` and `predict` need of it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..export.finite import check_finite
from ..export.weights import metadata_of
from ..machine.files import replaced
from ..parts import Prune
from .loop import Run


def save_network(run: Run, path: Path) -> None:
    """Write the weights, the sub-network they belong to, and what a method keeps: momentum network, coefficient.

    A file already there stays until the new one is whole; `morphogen export` reads it.

    Raises:
        ExportError: a weight or buffer is not finite, or the file cannot be written.
    """
    attached, data, recipe = run.attached, run.data, run.recipe
    check_finite(run.result)
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = {
        "model": recipe.model,
        "num_classes": f"{data.num_classes}",
        "metric": data.task.metric,
        "drop_path": f"{recipe.drop_path}",
        "mean": json.dumps(data.mean.tolist()),  # of the images, by channel, from 0 to 1
        "std": json.dumps(data.std.tolist()),
        "classes": json.dumps(list(data.classes)),
        **data.framing(max(attached.network.current.resolution or data.size)),
    }
    content = {"state_dict": run.result.state_dict(), **metadata_of(attached.network, notes, data.task.part)}
    for average in attached.averages:
        content["momentum"] = average.state_dict()
    prune = attached.part(Prune)
    if prune is not None:
        content["penalty_coefficient"] = prune.pruner.coefficient
    with replaced(path) as file:
        torch.save(content, file)

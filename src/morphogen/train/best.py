"""The best network of a run, and when there is no better one to come.

The best network may be smaller than the last one: it is kept, exported and used at the size that it had. Growing it
first would change what was tested wherever growth does not keep the function.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from ..errors import SubNetworkError
from ..export.weights import check_tensors
from ..report.ledger import Ledger
from ..report.training import extent_of
from .loop import Run
from .saved import save_network

BEST = "best.pt"


def is_best(ledger: Ledger) -> bool:
    """Whether the last epoch tested better than the network that is kept; where none is, than all before it."""
    *before, last = [epoch.accuracy for epoch in ledger.epochs]
    return last > max(before, default=-1.0) if ledger.kept is None else last > ledger.kept["accuracy"]


def keep_best(run: Run, path: Path) -> None:
    """Write the network of the last epoch, at its size; says so where it is none that could be loaded again."""
    network = run.attached.network
    try:
        check_tensors(run.traced(run.result).state_dict(), network, network.current)
    except SubNetworkError as error:
        warnings.warn(
            f"the best network so far is not kept while the method has parts of its own in it ({error})", stacklevel=2
        )
        return
    save_network(run, path)
    last = run.ledger.epochs[-1]
    run.ledger.kept = {"epoch": last.epoch, "accuracy": last.accuracy}


def waited(run: Run) -> int:
    """Epochs without a better test since the best one, or since the last change of size; 0 while a stage is to come.

    Accuracies of the whole run are compared: what a small network reached is to be beaten too.
    """
    if run.is_growing:
        return 0
    epochs = run.ledger.epochs
    best = max(epochs, key=lambda epoch: epoch.accuracy).epoch
    changed = max((morph.epoch - 1 for morph in run.ledger.morphs), default=-1)
    return epochs[-1].epoch - max(best, changed)


def extent_at(run: Run, epoch: int) -> str:
    """The size of the network in an epoch, in a few words."""
    part = next(part for start, part in reversed(run.attached.history) if start <= epoch)
    return extent_of(part, run.attached.network.dense)

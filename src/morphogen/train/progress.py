"""How large a run's network is for now, and how long the rest of the run will take."""

from __future__ import annotations

from .loop import Run


def flop_share(run: Run) -> float:
    """Training FLOPs of an image now, of those of the dense network with nothing frozen by the method."""
    return _flops(run) / run.books.flops_of(run.attached.network.dense, run.batch_size, frozenset())


def epochs_left(run: Run, epoch: int) -> float:
    """Epochs from this one on, as long as those before it: by the FLOPs of the sub-networks that are to come."""
    now, stages = _flops(run), run.attached.stages
    ends = [*(stage.start for stage in stages[1:]), run.total_epochs]
    left = [
        (part.subnetwork, min(end, run.total_epochs) - max(part.start, epoch))
        for part, end in zip(stages, ends, strict=True)
    ]
    return sum(count * run.books.flops_of(part, run.batch_size) / now for part, count in left if count > 0)


def _flops(run: Run) -> float:
    """Of an image, in this stage."""
    stage = run.ledger.stages[-1]
    return stage.training_flops / stage.batch_size

"""What of the dense network's cost a run that pruned has left, stage by stage and over the run."""

from __future__ import annotations

from collections.abc import Sequence

from ...cost.communication import all_reduce, run_bytes
from ..records import Record


def pruned_runs(records: Sequence[Record]) -> list[Record]:
    """The finished runs that pruned; records from before there was pruning have none of this."""
    return [record for record in records if record.get("pruned") and not record["stopped"]]


def modelled_runs(records: Sequence[Record]) -> list[Record]:
    """The finished runs, pruned or not, in which the memory of every stage is known."""
    return [r for r in records if not r["stopped"] and all(stage.get("memory") for stage in r["stages"])]


def over_training(run: Record, key: str) -> float | None:
    """Share of what the dense network's steps need, such as of `training_flops`; None where they need none of it."""
    whole = _over_images(run["pruned"]["dense"], key)
    return sum(_over_images(stage, key) for stage in run["stages"]) / whole if whole else None


def at_the_end(run: Record, key: str) -> float:
    """Share of what the dense network needs, such as of `inference_flops`, in the network that training left."""
    return run["stages"][-1][key] / run["pruned"]["dense"][key]


def communicated(run: Record, workers: int) -> float:
    """Bytes that each of so many workers would send, as a share of the dense network's."""
    return run_bytes(steps_of(run), workers) / run_bytes(steps_of(run, dense=True), workers)


def steps_of(run: Record, *, dense: bool = False) -> list[tuple[int, int]]:
    """(parameters, steps) of each stage, or of the dense network in its stead."""
    stages = [run["pruned"]["dense"]] if dense else run["stages"]
    return [(stage["parameters"], stage["steps"]) for stage in stages]


def flops_of_a_step(run: Record) -> list[float]:
    """FLOPs of a step of each trained stage as a share of the dense network's, with the dense run's batch."""
    dense = run["pruned"]["dense"]
    of_an_image = dense["training_flops"] / dense["batch_size"]
    return [stage["training_flops"] / stage["batch_size"] / of_an_image for stage in trained_stages(run)]


def bytes_of_a_step(run: Record, workers: int) -> list[float]:
    """Bytes that a worker sends in a step of each trained stage, as a share of the dense network's."""
    dense = all_reduce(run["pruned"]["dense"]["parameters"], workers).total
    return [all_reduce(stage["parameters"], workers).total / dense for stage in trained_stages(run)]


def bytes_of_an_epoch(run: Record, workers: int) -> list[float]:
    """The same of an epoch, which has fewer steps where the batch has grown."""
    dense = run["pruned"]["dense"]
    steps = [stage["steps"] / images_of(stage) * dense["batch_size"] for stage in trained_stages(run)]
    return [share * fewer for share, fewer in zip(bytes_of_a_step(run, workers), steps, strict=True)]


def trained_stages(run: Record) -> list[Record]:
    """The stages that took steps: not what a reconfiguration after the last epoch left."""
    return [stage for stage in run["stages"] if stage["steps"]]


def epochs_of(run: Record) -> list[int]:
    """The first epoch of each trained stage, and the run's length behind them."""
    return [*(stage["epoch"] for stage in trained_stages(run)), run["epochs"][-1]["epoch"] + 1]


def images_of(stage: Record) -> int:
    """Images of all steps of a stage; of records from before they were counted, those of whole steps."""
    return stage.get("images", stage["steps"] * stage["batch_size"])


def _over_images(stage: Record, key: str) -> float:
    """What all steps of a stage need of what a whole step needs."""
    return stage[key] * images_of(stage) / stage["batch_size"]

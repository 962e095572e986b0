"""A plan as tables and sentences."""

from __future__ import annotations

from .planner import Plan, Run, StagePlan
from .widths import Widths, totals


def stage_rows(plan: Plan, run: Run) -> list[dict[str, str]]:
    """One row a stage, and one for the dense network."""
    stages = [(str(number), stage) for number, stage in enumerate(run.stages, 1)]
    return [_row(name, stage) for name, stage in [*stages, ("dense", plan.dense)]]


def _row(name: str, stage: StagePlan) -> dict[str, str]:
    alive, blocks = stage.blocks
    row = {
        "stage": name + (f" (one of {stage.candidates})" if stage.candidates else ""),
        "epochs": str(stage.epochs),
        "blocks": f"{alive} of {blocks}" if blocks else "",
        "width": f"{stage.width:.2f}",
        "input": "" if stage.resolution is None else "{} x {}".format(*stage.resolution),
        "parameters": f"{stage.parameters:,}",
        "GFLOPs": f"{stage.flops / 1e9:,.1f}",
        "of dense": f"{stage.flop_share:.2f}",
        "step ms": f"{1000 * stage.seconds:,.1f}",
        "its share": f"{stage.time_share:.2f}",
        "images/s": f"{stage.images_per_second:,.0f}",
        "MiB": f"{stage.memory / 2**20:,.0f}",
    }
    if stage.loader_images_per_second is not None:
        row["loader images/s"] = f"{stage.loader_images_per_second:,.0f}"
    return row


def width_rows(widths: Widths) -> list[dict[str, str]]:
    """One row a multiple: FLOPs and time of a step by dense, with each share of the channels and in all."""
    rows: dict[int, dict[str, str]] = {}
    for cost in widths.costs:
        row = rows.setdefault(cost.multiple_of, {"multiple_of": str(cost.multiple_of)})
        row[f"FLOPs at {cost.share:g}"] = f"{cost.flop_share:.3f}"
        row[f"time at {cost.share:g}"] = f"{cost.time_share:.3f}"
    times = totals(widths.costs, "time_share")
    return [{**row, "time in all": f"{times[multiple]:.3f}"} for multiple, row in rows.items()]


def total(run: Run) -> str:
    """What the run would take and save, in one line."""
    p = run.prediction
    text = f"predicted speedup {p.speedup:.2f}x, in FLOPs {p.flop_speedup:.2f}x"
    if p.realised is not None:
        text += f", realised {p.realised:.2f}"
    if p.seconds is not None and p.dense_seconds is not None and p.overhead is not None:
        text += f"; {duration(p.seconds)} instead of {duration(p.dense_seconds)}"
        text += f", of which tracing and morphs {duration(p.overhead)}"
    return text


def told(run: Run) -> list[str]:
    """Why the time would not follow the FLOPs, each sentence once, with the stages it is true of."""
    stages: dict[str, list[str]] = {}
    for number, stage in enumerate(run.stages, 1):
        for reason in stage.reasons:
            stages.setdefault(reason, []).append(str(number))
    return [f"stage {', '.join(numbers)}: {reason}" for reason, numbers in stages.items()]


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"

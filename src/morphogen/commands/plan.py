"""`morphogen plan`: what a method would save here, before it is run."""

from __future__ import annotations

import json
from typing import Any

from ..plan.show import stage_rows, told, total, width_rows
from ..recipes.use import with_recipe
from ..report.ledger import environment
from ..report.render import as_table
from ..train.config import PlanConfig
from ..train.planning import plan_recipe
from .command import Command
from .terminal import console, measuring


def configure(given: dict[str, Any]) -> PlanConfig:
    """The settings of a plan: those given, on top of a recipe's."""
    return PlanConfig(**with_recipe(given, needs_data=False))


def run_plan(config: PlanConfig) -> int:
    """Measure each stage of a method on this device, and predict what training with it would save."""
    with measuring() as tell:
        plan = plan_recipe(config, tell)
    where = environment(config.torch_device())
    if config.json:
        head = {"model": config.model, "method": config.method, "environment": where}
        print(json.dumps({**head, **plan.to_dict()}, indent=1))
        return 0
    print(f"{config.model}, {config.method}, batches of {config.batch_size}, {config.precision}, on {where['device']}")
    for run in plan.runs:
        if run.found:
            print(f"\nIf the searches find {run.found}:")
        console().print(as_table(stage_rows(plan, run)))
        print(total(run))
        for line in told(run):
            print(f"  {line}")
    if plan.widths:
        title = "pruned networks, by the share of the channels left: a step's FLOPs and time, of dense"
        console().print(as_table(width_rows(plan.widths), title))
        print(plan.widths.recommendation)
    for note in plan.notes:
        print(f"note: {note}")
    return 0


PLAN = Command(
    "plan",
    PlanConfig,
    run_plan,
    """examples:
  morphogen plan resnet50 --method "Prog(ratio=0.5)" --batch_size 128 --images 1281167
  morphogen plan "resnet20(width=32)" --method "NetworkExpansion(stages=3)" --data cifar10:/data/cifar10 --epochs 60
  morphogen plan --recipe autoprog/2/deit-s-100-prog --batch_size 128 --json
  morphogen plan resnet50 --method PruneTrain --batch_size 128 --seconds 300""",
    first=("model", "as in train"),
    configure=configure,
)

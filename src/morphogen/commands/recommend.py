"""`morphogen recommend`: which method to train with here."""

from __future__ import annotations

import json
from dataclasses import asdict

from ..report.ledger import environment
from ..report.render import as_table
from ..train.config import RecommendConfig
from ..train.planning import recommend_recipe
from .command import Command
from .terminal import console, measuring


def run_recommend(config: RecommendConfig) -> int:
    """Measure here what each method would save, and rank the methods by that and by the accuracy they were seen to
    keep; a few minutes."""
    with measuring() as tell:
        found = recommend_recipe(config, tell)
    where = environment(config.torch_device())
    if config.json:
        head = {"model": config.model, "environment": where}
        print(json.dumps({**head, **asdict(found), "best": found.best and found.best.method}, indent=1))
        return 0
    print(f"{config.model}, {found.kind}, {config.epochs} epochs, batches of {config.batch_size}, on {where['device']}")
    if found.rows():
        console().print(as_table(found.rows()))
    for line in found.lines():
        print(line)
    if found.best is None:
        print("No method saves time here without losing accuracy where it was measured: train the dense network.")
        return 0
    asked = f" --data {config.data}" if config.data else ""
    model = f'"{config.model}"' if "(" in config.model else config.model
    method = f'"{found.best.method}"' if "(" in found.best.method else found.best.method
    print("\nto train with the first one:")
    print(f"  morphogen train --model {model}{asked} --epochs {config.epochs} --method {method}")
    for line in found.loop():
        print(line)
    return 0


RECOMMEND = Command(
    "recommend",
    RecommendConfig,
    run_recommend,
    """examples:
  morphogen recommend resnet50 --batch_size 64 --epochs 90 --images 1281167
  morphogen recommend "resnet8(width=32)" --data cifar10:/data/cifar10 --epochs 40
  morphogen recommend timm:vit_tiny_patch16_224 --epochs 100 --methods "[GrowOnce, Prog]" --seconds 300""",
    first=("model", "as in train"),
)

"""`morphogen recommend`: which method to train with here."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from typing import Any

from ..recipes import find_row
from ..recipes.use import settings_of, with_recipe
from ..report.ledger import environment
from ..report.render import as_table
from ..train.config import RecommendConfig
from ..train.planning import recommend_recipe
from ..train.recipe import Recipe
from .command import Command
from .terminal import console, measuring


def configure(given: dict[str, Any]) -> RecommendConfig:
    """A recipe's settings, without its method, where one is named; what was given wins."""
    settings = with_recipe(given, needs_data=False)
    return RecommendConfig(**{key: value for key, value in settings.items() if key != "method"})


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
    print("\nto train with the first one:")
    print(f"  morphogen train {settings(config, found.best.epochs)} --method {_quoted(found.best.method)}")
    for line in found.loop():
        print(line)
    return 0


def settings(config: RecommendConfig, epochs: int) -> str:
    """What was given, as `morphogen train` takes it: all that is not so by default, or by the recipe.

    `epochs` is the length of the method's run.
    """
    usual = vars(Recipe()) | {"data": ""}
    if config.recipe:
        usual |= settings_of(find_row(config.recipe)[1], config.scale)
    given = {f.name: getattr(config, f.name) for f in fields(Recipe)}
    given["epochs"] = epochs
    named = ("recipe",) if config.recipe else ("model", "data", "epochs")
    chosen = {name: given[name] for name in named} | {k: v for k, v in given.items() if v != usual.get(k)}
    return " ".join(f"--{name} {_quoted(value)}" for name, value in chosen.items() if value not in ("", None))


def _quoted(value: object) -> str:
    """A value for a shell, as YAML reads it."""
    text = (json.dumps(value) if isinstance(value, bool | list) else str(value)).replace('"', "'")
    return text if re.fullmatch(r"[\w./:+-]+", text) else f'"{text}"'


RECOMMEND = Command(
    "recommend",
    RecommendConfig,
    run_recommend,
    """examples:
  morphogen recommend resnet50 --batch_size 64 --epochs 90 --images 1281167
  morphogen recommend "resnet8(width=32)" --data cifar10:/data/cifar10 --epochs 40
  morphogen recommend timm:vit_tiny_patch16_224 --epochs 100 --methods "[GrowOnce, Prog]" --seconds 300""",
    first=("model", "as in train"),
    configure=configure,
)

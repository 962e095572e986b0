"""`morphogen inspect`: what of a model can change size."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from ..errors import ConfigError
from ..graph.trace import trace
from ..report.inspect import describe
from ..report.render import as_table
from ..train.models import build_model
from .command import Command
from .terminal import console


@dataclass(frozen=True)
class InspectConfig:
    """What of a model can change size.

    Attributes:
        model: `resnet20(width=32)`, any torchvision or timm name, or `package.module:function`.
        image_size: side of the square input in pixels.
        num_classes: number of outputs.
        shares: of the width, the depth and the resolution, to count parameters and FLOPs at.
        exclude: module paths to leave whole.
        json: print JSON instead of tables.
    """

    model: str
    image_size: int = 224
    num_classes: int = 1000
    shares: tuple[float, ...] = (0.5, 0.75)
    exclude: tuple[str, ...] = ()
    json: bool = False

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.num_classes < 1:
            raise ConfigError(
                "out of range",
                expected="image_size and num_classes at least 1",
                found=f"{self.image_size} and {self.num_classes}",
            )
        if not all(0 < share <= 1 for share in self.shares):
            raise ConfigError("shares out of range", expected="each above 0, at most 1", found=f"{self.shares}")


def run_inspect(config: InspectConfig) -> int:
    """Show the channel groups and block stacks of a model, what stays and why, and what its parts cost."""
    model = build_model(config.model, config.num_classes)
    network = trace(model, torch.zeros(2, 3, config.image_size, config.image_size), exclude=config.exclude)
    tables = describe(network, config.shares)
    if config.json:
        print(json.dumps({"model": config.model, "extent": repr(network), **tables}, indent=1))
        return 0
    print(network)
    out = console()
    for title, rows in tables.items():
        if rows:
            cells = [{key: f"{v:,}" if isinstance(v, int) else str(v) for key, v in row.items()} for row in rows]
            out.print(as_table(cells, title))
    return 0


INSPECT = Command(
    "inspect",
    InspectConfig,
    run_inspect,
    """examples:
  morphogen inspect resnet50
  morphogen inspect timm:convnext_nano --shares "[0.25, 0.5]"
  morphogen inspect mypackage.nets:build --image_size 64""",
    first=("model", "name of a model, or package.module:function"),
    needs_first=True,
    from_file=False,
)

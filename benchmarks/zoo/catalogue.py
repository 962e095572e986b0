"""Which models there are, and how each is built: `timm:NAME`, `torchvision:NAME`, `PACKAGE:NAME` of the wild ones."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.models import get_pretrained_cfg, model_entrypoint
from torch import nn

import wild

SIZES = (224, 256, 288, 299, 320, 384, 448, 512)
"""Pixels to try, the smallest first, where a model's own size is larger than the first of them."""

LARGEST = """timm:convnext_xxlarge timm:eva_giant_patch14_224 timm:vit_giant_patch14_224 timm:resnetv2_152x4_bit
    torchvision:regnet_y_128gf torchvision:vit_h_14""".split()

TORCHVISION = {
    kind: torchvision.models.list_models(module=module)
    for kind, module in (
        ("classification", torchvision.models),
        ("segmentation", torchvision.models.segmentation),
        ("detection", torchvision.models.detection),
    )
}


def all_names() -> list[str]:
    """Every model that is known here."""
    theirs = [f"torchvision:{name}" for names in TORCHVISION.values() for name in names]
    return theirs + [f"timm:{name}" for name in timm.list_models()] + list(wild.models())


def matching(patterns: Iterable[str]) -> list[str]:
    """The models that any of the patterns matches, in the order of the patterns."""
    known = all_names()
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [name for name in known if fnmatchcase(name, pattern)]
        if not names:
            raise SystemExit(
                f"no model matches '{pattern}': write timm:NAME, torchvision:NAME or PACKAGE:NAME, * for anything"
            )
        found |= dict.fromkeys(names)
    return list(found)


def preset(name: str, cache: Path) -> list[str]:
    """The models of one of the sets; parameters of timm's are counted once, and kept in a file."""
    if name == "largest":
        return [str(model) for model in LARGEST]
    if name == "wild":
        return wild.in_turn()
    if name == "torchvision":
        return matching(["torchvision:*"])
    sizes = timm_sizes(cache)
    by_size = sorted(sizes, key=lambda model: (sizes[model], model))
    if name == "timm-30m":
        return [model for model in by_size if sizes[model] < 30e6]
    smallest: dict[str, str] = {}
    for model in by_size:
        smallest.setdefault(file_of(model), model)
    return [smallest[file] for file in sorted(smallest)]


def timm_sizes(cache: Path) -> dict[str, int]:
    """Parameters of every timm model, counted without memory; takes some minutes the first time."""
    known: dict[str, int] = json.loads(cache.read_text()) if cache.exists() else {}
    missing = [name for name in timm.list_models() if f"timm:{name}" not in known]
    if missing:
        from rich.progress import track

        for name in track(missing, "Counting parameters"):
            known[f"timm:{name}"] = sum(p.numel() for p in build(f"timm:{name}", meta=True).parameters())
        cache.write_text(json.dumps(known, indent=0))
    return known


def file_of(name: str) -> str:
    """The architecture file a model is defined in, such as `timm.models.resnet`; of other packages the package."""
    family, _, model = name.partition(":")
    if name in wild.models():
        return family
    return (model_entrypoint(model) if family == "timm" else torchvision.models.get_model_builder(model)).__module__


def build(name: str, *, meta: bool = False) -> nn.Module:
    """A model with random weights; of a detector its backbone. On the meta device it takes no memory."""
    family, _, model = name.partition(":")
    if name in wild.models():
        return wild.build(name)
    with warnings.catch_warnings(), torch.device("meta" if meta else "cpu"):
        warnings.simplefilter("ignore")
        if family == "timm":
            return timm.create_model(model, pretrained=False)
        if model in TORCHVISION["classification"]:
            return torchvision.models.get_model(model, weights=None)
        whole = torchvision.models.get_model(model, weights=None, weights_backbone=None)
        return whole.get_submodule("backbone") if model in TORCHVISION["detection"] else whole


def example(name: str) -> Any:
    """What a model is called with, two of each: images of the smallest size it accepts, or what it asks for."""
    return wild.models()[name].example() if name in wild.models() else torch.randn(2, *accepted_shape(name))


def accepted_shape(name: str) -> tuple[int, int, int]:
    """The first shape a model accepts in both modes, tried without arithmetic; the last where none can be tried."""
    shapes = input_shapes(name)
    with suppress(Exception):
        model = build(name, meta=True)
        for shape in shapes[:-1]:
            with suppress(Exception), torch.no_grad():
                for training in (False, True):
                    model.train(training)(torch.empty(2, *shape, device="meta"))
                return shape
    return shapes[-1]


def input_shapes(name: str) -> Sequence[tuple[int, int, int]]:
    """Shapes of one image to try, the best first."""
    family, _, model = name.partition(":")
    channels, size = 3, 224
    if family == "timm":
        config = get_pretrained_cfg(model)
        if config is not None:
            channels, size = config.input_size[0], max(config.input_size[1:])
    elif model == "inception_v3":
        size = 299
    elif model not in TORCHVISION["classification"]:
        size = 320  # these take any size, but SSD's backbone, none below 300
    sides = [size] if size <= SIZES[0] else [*(side for side in SIZES if side < size), size]
    return [(channels, side, side) for side in sides]

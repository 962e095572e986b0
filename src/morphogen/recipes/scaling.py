"""A recipe made small: epochs, images, width and resolution together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..spec import parse_call
from .narrow import narrowed, spelled
from .table import Row, Settings

IMAGES = {
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenet": (1_281_167, 50_000),
    "cityscapes": (2_975, 500),
}
"""For training and for testing."""

LEAST_EPOCHS, LEAST_IMAGES, LEAST_TESTED, LEAST_BATCH = 12, 1000, 1000, 32
LEAST_MASKS = 100
"""Images for segmentation, each of which has as many labels as pixels."""

PULL = 0.75
"""A group lasso has to pull the harder the fewer steps it has: by this power of their number, as measured for runs of
1,400 steps (the card of PruneTrain)."""


def scaled(row: Row, scale: float) -> Settings:
    """The settings of a row for a small machine.

    Epochs and images are `scale` times the paper's (at least 12 epochs, and an epoch for each stage; 1,000 images).
    The share of the channels and that of the image's side are its fourth root; that of the batch, and with it of the
    learning rate, its square root (at least 32 images; Adam's rate by the square root of the batch). Averages reach
    back over the same share of the run, and a group lasso pulls harder.

    Raises:
        ConfigError: a scale outside (0, 1], or of a model or data that have no smaller size.
    """
    if not 0 < scale <= 1:
        raise ConfigError("scale out of range", expected="above 0, at most 1", found=f"{scale}")
    if row.data not in IMAGES:
        raise ConfigError("this recipe has no smaller size", where=row.name, todo="Leave out scale")
    if scale == 1:
        return row.settings
    settings: dict[str, Any] = dict(row.settings)
    share, (images, tested) = scale**0.25, IMAGES[row.data]
    whole_steps = settings["epochs"] * images / settings["batch_size"]
    epochs = max(round(scale * settings["epochs"]), _least_epochs(settings["method"]))
    few, few_tested = (
        min(count, max(LEAST_MASKS if row.data == "cityscapes" else least, round(scale * count)))
        for count, least in ((images, LEAST_IMAGES), (tested, LEAST_TESTED))
    )
    batch = min(settings["batch_size"], max(LEAST_BATCH, 8 * round(scale**0.5 * settings["batch_size"] / 8)))
    rate = batch / settings["batch_size"]
    steps = epochs * few / batch / whole_steps
    settings["model"], settings["image_size"] = narrowed(settings["model"], share, share)
    settings["warmup_epochs"] = round(settings.get("warmup_epochs", 0) * epochs / settings["epochs"])
    settings |= {"epochs": epochs, "images": few, "test_images": few_tested}
    settings |= {"batch_size": batch, "lr": round(settings["lr"] * _rate(settings, rate), 6), "workers": 2}
    if "ema" in settings:
        decays = (round(1 - min(0.5, (1 - decay) / steps), 4) for decay in settings["ema"])
        settings["ema"] = list(dict.fromkeys(decays))  # in a short run several reach back over all of it
    if "test_size" in settings:
        settings["test_size"] = _legal(settings["image_size"] * 288 / 224)
    settings["method"] = _method(settings["method"], steps * _rate(settings, rate))
    return settings


def _rate(settings: Mapping[str, Any], share: float) -> float:
    """How the learning rate follows the batch."""
    return share**0.5 if settings["optimizer"] == "adamw" else share


def _legal(side: float) -> int:
    """A side that patches, and the stages behind them, divide."""
    return 16 * round(side / 16)


def _least_epochs(method: str) -> int:
    """Every stage needs its epochs, with a search three."""
    name, arguments = parse_call(method.partition(" + ")[0])
    stages = arguments.get("stages", 4)
    return max(LEAST_EPOCHS, 2 * stages if name == "AutoProg" else stages)


def _method(text: str, steps: float) -> str:
    """A method in so small a share of its steps, all weighed by their learning rate.

    Momentum networks and reconfiguration intervals go by the run's length, which is what they do where nothing is said.
    """
    made = []
    for each in re.split(r" \+ ", text):
        name, arguments = parse_call(each)
        for by_length in ("decay", "interval"):
            arguments.pop(by_length, None)
        if name == "PruneTrain":
            odds = arguments["ratio"] / (1 - arguments["ratio"]) / steps**PULL
            arguments["ratio"] = round(odds / (1 + odds), 3)
        made.append(spelled(name, arguments))
    return " + ".join(made)


def changes(row: Row, small: Settings) -> list[str]:
    """What differs from the paper, one setting each, of those that scaling touches."""
    missing = {"images": "all", "test_images": "all", "image_size": "32", "warmup_epochs": 0, "workers": 2}
    return [
        f"{key} {row.settings.get(key, missing.get(key, ''))} -> {value}"
        for key, value in small.items()
        if row.settings.get(key, missing.get(key)) != value
    ]

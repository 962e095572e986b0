"""Settings of a run from a recipe and from what its user gives, which wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from . import find_row
from .scaling import changes, scaled
from .table import Row, Settings

KINDS = ("cifar10", "cifar100", "imagenet", "cityscapes")
"""Data that `--data KIND:FOLDER` reads."""


def settings_of(row: Row, scale: float | None) -> Settings:
    """A row's settings, perhaps made small."""
    return row.settings if scale is None else scaled(row, scale)


def with_recipe(given: Mapping[str, Any], *, needs_data: bool = True) -> dict[str, Any]:
    """What a user gave, on top of the recipe that it names, if any.

    Args:
        given: settings of a command, `recipe` and `scale` among them.
        needs_data: whether the command is nothing without images.

    Raises:
        ConfigError: no such recipe; no data; a scale without a recipe; a recipe that needs what is not there.
    """
    if not given.get("recipe"):
        if given.get("scale") is not None:
            raise ConfigError("only a recipe can be scaled", where="scale", todo="Name one: --recipe, or --table")
        return dict(given)
    table, row = find_row(given["recipe"])
    if needs_data:
        check_data(given, row)
    for key, what in row.needs.items():
        if key not in given:
            raise ConfigError("this recipe needs more", where=f"{table.name}/{row.name}", expected=f"--{key}: {what}")
    return {**settings_of(row, given.get("scale")), **given, "recipe": f"{table.name}/{row.name}"}


def check_data(given: Mapping[str, Any], row: Row) -> None:
    """Refuse a run without data; raises ConfigError."""
    if "data" not in given:
        known = f"--data {row.data}:FOLDER, or an image folder" if row.data in KINDS else "--data FOLDER"
        raise ConfigError("a recipe says how to train, and not where the images are", where="data", expected=known)


def what_changed(config: Any) -> str:
    """One line of what scaling made different in a run's settings from the paper's; empty where nothing was scaled."""
    if not config.recipe or config.scale is None:
        return ""
    row = find_row(config.recipe)[1]
    now = {key: getattr(config, key, value) for key, value in scaled(row, config.scale).items()}
    return f"{config.recipe} scaled by {config.scale:g}: {'; '.join(changes(row, now))}"

"""A plan for a recipe: its model, step and data, as the trainer would run them."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..methods import build_method
from ..parts import Resize
from ..plan import Plan, Supply, Training, plan
from ..plan.planner import Progress
from ..plan.recommend import Recommendation, recommended
from ..run.assembly import Assembly
from .config import PlanConfig, RecommendConfig
from .data import Data, FileData, loader_throughput
from .memory_format import in_memory_format
from .models import build_model
from .objective import build_optimizer, laid_out, precision_of
from .recipe import Recipe
from .sources import load_data
from .tasks import Task, classification_of

LOADER_BATCH = 32
"""Images in a batch when decoding is timed: with large ones the loader's processes all finish their first at once."""


def plan_recipe(config: PlanConfig, progress: Progress = lambda done, total: None) -> Plan:
    """Plan a method with a recipe, on random images, or on data where the recipe names some.

    Raises:
        MorphogenError: settings, model, data and method that do not fit.
    """
    method = build_method(config.method)
    resize = Assembly(method).of(Resize) or Resize()
    model, training, steps, supply = _measurable(config, resize.kind)
    return plan(
        model,
        method,
        training,
        epochs=config.epochs,
        steps_per_epoch=steps,
        supply=supply,
        seconds=config.seconds,
        exclude=config.exclude,
        progress=progress,
    )


def recommend_recipe(config: RecommendConfig, progress: Progress = lambda done, total: None) -> Recommendation:
    """Rank methods for a recipe, on random images, or on data where the recipe names some.

    Raises:
        MorphogenError: settings, model and data that do not fit.
    """
    model, training, steps, supply = _measurable(config, Resize().kind)
    return recommended(
        model, config.methods, training, config.epochs, steps, supply, config.seconds, config.exclude, progress
    )


def _measurable(
    config: PlanConfig | RecommendConfig, resizing: str
) -> tuple[nn.Module, Training, int | None, Supply | None]:
    """The model, its training step, the steps of an epoch, and the data layer, where they are known."""
    if config.compile:
        raise ConfigError("the planner measures steps as they are", where="compile", expected="false", found="true")
    data = load_data(config) if config.data else None
    if config.token_labels and data is None:
        raise ConfigError("label maps go with images", where="token_labels", expected="data", found="none")
    if config.model.startswith("smp:") and data is None:
        raise ConfigError("a model of segmentation is planned on images with masks", where="data", expected="a folder")
    model, training = measured_step(config, data, config.num_classes)
    steps = data.steps if data else _steps(config)
    return model, training, steps, None if data is None else supply_of(data, config, resizing)


def measured_step(recipe: Recipe, data: Data | None, num_classes: int = 0) -> tuple[nn.Module, Training]:
    """A recipe's model, and its training step on random images; without data, of so many classes."""
    device, side = recipe.torch_device(), recipe.image_size or 224
    classes = data.num_classes if data else num_classes
    if data is not None and data.task.part:
        raise ConfigError(
            f"only the {data.task.part} of such a network is traced, and step times are of networks traced whole",
            where=recipe.data,
            todo="Compare with train or compare, without budgets in parallel, which time whole steps",
        )
    model = build_model(recipe.model, classes, recipe.drop_path).to(device)
    size = data.size if data else (side, side)
    recipe = in_memory_format(model, recipe, max(size))
    images = torch.randn(recipe.batch_size, 3, *size, device=device)
    return model, Training(
        images,
        _random_classes(recipe, classes, device) if data is None else next(data.train_batches(0, 0))[1],
        optimizer=partial(build_optimizer, recipe=recipe),
        loss=partial(_loss, recipe, data.task if data else classification_of(recipe, torch.ones(classes))),
        clip_grad=recipe.clip_grad,
        ema=len(recipe.decays),
    )


def _random_classes(recipe: Recipe, classes: int, device: torch.device) -> torch.Tensor:
    """Labels of a batch; what they say does not matter."""
    labels = torch.randint(classes, (recipe.batch_size,), device=device)
    return F.one_hot(labels, classes).float() if recipe.mixup or recipe.cutmix else labels


def _loss(recipe: Recipe, task: Task, model: nn.Module, images: torch.Tensor, targets: Any) -> torch.Tensor:
    with precision_of(recipe, images.device):
        return task.loss(model, laid_out(images, recipe), targets)


def _steps(config: PlanConfig | RecommendConfig) -> int | None:
    """Steps in an epoch, where the number of images is known."""
    if config.images is None:
        return None
    if config.images < config.batch_size:
        raise ConfigError(
            "fewer training images than one batch",
            where="images",
            expected=f"at least {config.batch_size}",
            found=f"{config.images}",
        )
    return config.images // config.batch_size


def supply_of(data: Data, recipe: Recipe, resizing: str) -> Supply:
    """What the data layer alone delivers, images resized as a method does."""
    if not isinstance(data, FileData):
        return Supply(lambda size: loader_throughput(data, size, 24, resizing), overlapped=False)
    small = copy(data)
    small.recipe = replace(recipe, batch_size=min(LOADER_BATCH, recipe.batch_size))
    batches = 8 * max(1, recipe.workers)
    return Supply(lambda size: loader_throughput(small, size, batches, resizing), overlapped=recipe.workers > 0)

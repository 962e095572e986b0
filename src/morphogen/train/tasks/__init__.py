"""What a network learns to do, one object each: its loss, its test, and what its output must be for them."""

from __future__ import annotations

from torch import Tensor

from ..recipe import Recipe
from .classification import Classification
from .detection import Detection
from .segmentation import Segmentation
from .task import Task
from .token_labelling import TokenLabelling

__all__ = ["Task", "Classification", "TokenLabelling", "Segmentation", "Detection"]
__all__ += ["classification_of", "metric_of", "task_of"]

BY_DATA: dict[str, type[Task]] = {
    "segmentation": Segmentation,
    "cityscapes": Segmentation,
    "detection": Detection,
    "scatter": Detection,
}
"""What is learnt on data of a kind (`KIND:FOLDER`, or an embedded set); classification on all others."""

BY_METRIC: dict[str, type[Task]] = {task.metric: task for task in (Classification, Segmentation, Detection)}
"""Files say what a network was trained for by its figure."""


def metric_of(data: str) -> str:
    """What a run on a recipe's `data` is measured by, in percent."""
    return BY_DATA.get(data.rpartition(":")[0] or data, Classification).metric


def task_of(metric: str) -> type[Task]:
    """What is measured so; classification where a file says nothing.

    Raises:
        ValueError: nothing is.
    """
    if metric and metric not in BY_METRIC:
        raise ValueError(f"no task is measured by {metric[:40]!r}")
    return BY_METRIC.get(metric, Classification)


def classification_of(recipe: Recipe, counts: Tensor) -> Task:
    """What a recipe learns where each image has a class; `counts` are the images of each."""
    classes = len(counts)
    if recipe.token_labels:
        return TokenLabelling(classes, recipe.label_smoothing, ground_truth=recipe.ground_truth)
    weights = counts.sum() / (classes * counts.clamp_min(1)) if recipe.class_weights else None
    return Classification(classes, recipe.label_smoothing, recipe.mixup > 0 or recipe.cutmix > 0, weights)

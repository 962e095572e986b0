"""Which classes a network tells apart: figures of each class, and the confusion matrix."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFUSION = ("classes.csv", "confusion.csv", "confusion.png")

NAMED = 30
"""Classes up to which the picture writes their names, and the counts."""


def write_confusion(truth: Any, predicted: Any, names: Sequence[str], folder: Path) -> list[Path]:
    """Write `classes.csv`, `confusion.csv` and `confusion.png`.

    Args:
        truth: class of each test image, an integer array (images,).
        predicted: the one with the best score.
        names: of all classes.
        folder: to write into.

    Returns:
        The files. Rows of the matrix are true classes, columns predicted ones. Figures that would divide by zero, as of
        a class that no image has, are 0.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    numbers = list(range(len(names)))
    matrix = confusion_matrix(truth, predicted, labels=numbers)
    options: Any = {"labels": numbers, "zero_division": 0}
    each: Any = precision_recall_fscore_support(truth, predicted, **options)
    mean: Any = precision_recall_fscore_support(truth, predicted, average="macro", **options)
    paths = [folder / name for name in CONFUSION]
    with open(paths[0], "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "precision", "recall", "F1", "images"])
        for name, *figures, images in zip(names, *each, strict=True):
            writer.writerow([name, *(f"{figure:.4f}" for figure in figures), images])
        writer.writerow(["mean of the classes", *(f"{figure:.4f}" for figure in mean[:3]), len(truth)])
    with open(paths[1], "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    _draw(matrix, names, float(mean[2]), paths[2])
    return paths


def _draw(matrix: Any, names: Sequence[str], f1: float, path: Path) -> None:
    """Shares of each true class, so that rare ones show."""
    from matplotlib.figure import Figure

    shares = matrix / matrix.sum(1, keepdims=True).clip(1)
    side = min(12.0, 4 + 0.3 * len(names))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
        for row, column in zip(*matrix.nonzero(), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, matrix[row, column], ha="center", va="center", fontsize=7, color=colour)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"test images, mean F1 of the classes {f1:.3f}", fontsize=9)
    figure.savefig(path, dpi=130)

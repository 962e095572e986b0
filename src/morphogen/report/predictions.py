"""Pictures of what a trained network says of test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


def draw_masks(rows: Sequence[tuple[Tensor, Tensor, Tensor]], classes: int, path: Path) -> None:
    """Image, truth and prediction side by side, one row an image; a class has one colour, no class is black.

    Args:
        rows: (3, h, w) in [0, 1], and two maps of classes (H, W); numbers that are no class are not drawn.
        classes: how many there are.
        path: of the picture.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colours = torch.zeros(256, 3)
    palette = torch.tensor(colormaps["tab20"].colors)  # pyright: ignore  (a list of colours)
    colours[:classes] = palette[torch.arange(classes) % len(palette)].float()
    height, width = rows[0][1].shape
    figure = Figure(figsize=(9, 3 * len(rows) * height / width + 0.3), layout="constrained")
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for i, (image, truth, found) in enumerate(rows):
        shown = image.permute(1, 2, 0), colours[truth.long()], colours[found.long()]
        for axes, pixels, title in zip(panels[i], shown, ("image", "truth", "prediction"), strict=True):
            axes.imshow(pixels.numpy(), interpolation="nearest")
            axes.set_axis_off()
            if not i:
                axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=110)


class Drawn(NamedTuple):
    """An image (3, h, w) in [0, 1] with boxes (K, 4), left, top, right, bottom in pixels, and what is said of each."""

    image: Tensor
    boxes: Tensor
    words: Sequence[str]


def draw_boxes(rows: Sequence[Sequence[Drawn]], titles: Sequence[str], path: Path) -> None:
    """Images with their boxes, as many in a row as there are titles."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(4 * len(titles), 4 * len(rows) + 0.3), layout="constrained")
    panels = figure.subplots(len(rows), len(titles), squeeze=False)
    for i, row in enumerate(rows):
        for axes, drawn, title in zip(panels[i], row, titles, strict=True):
            axes.imshow(drawn.image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axes.set_axis_off()
            for (left, top, right, bottom), word in zip(drawn.boxes.tolist(), drawn.words, strict=True):
                axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="tab:orange"))
                # Names of classes come with the data: no mathematics in them.
                axes.text(left, top, word, fontsize=8, color="white", backgroundcolor="tab:orange", parse_math=False)
            if not i and title:
                axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=110)

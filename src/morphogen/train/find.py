"""A trained detector on image files: objects with boxes in pixels of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ..errors import ConfigError, first_line
from ..parts.resizing import Size
from ..report.predictions import Drawn, draw_boxes
from .boxes import fitted
from .images import read_image
from .predictions import Detected, Object
from .tasks.detection import SURE

DRAWN = 16
"""Images in a picture, at most."""


class Given(NamedTuple):
    """An image as the detector takes it, the height and width of its file, and how much of the square it has."""

    pixels: Tensor
    size: Size
    sides: Size


@dataclass(frozen=True)
class Finder:
    """A detector and what it expects.

    Attributes:
        model: in evaluation mode.
        size: height and width of the images.
        classes: names, with that of the background; empty where they are not known.
        batch: of how many images it takes; None is any number.
    """

    model: nn.Module
    size: Size
    classes: list[str]
    batch: int | None = None

    def image(self, path: str) -> Given:
        """A file as the network was tested on; raises ConfigError, see `read_image`."""
        image = read_image(path)
        pixels, sides = fitted(image, self.size)
        return Given(pixels.float() / 255, (image.height, image.width), sides)

    def predict(self, images: Mapping[str, Given], top: int) -> list[Detected]:
        """The surest objects of each image."""
        with torch.inference_mode():
            found = self.model([each.pixels for each in images.values()])
        return [
            Detected(path, self._objects({name: t[:top].cpu() for name, t in objects.items()}, given))
            for (path, given), objects in zip(images.items(), found, strict=True)
        ]

    def _objects(self, found: Mapping[str, Tensor], given: Given) -> list[Object]:
        """By falling score, as torchvision's detectors return them."""
        (height, width), sides = given.size, given.sides
        scale = torch.tensor([width / sides[1], height / sides[0]]).repeat(2)
        boxes = torch.minimum(found["boxes"].float() * scale, torch.tensor([width, height]).repeat(2))
        labels = [self.classes[n] if n < len(self.classes) else str(n) for n in found["labels"].tolist()]
        scores = found["scores"].tolist()
        return [
            Object(name, score, (box[0], box[1], box[2], box[3]))
            for name, score, box in zip(labels, scores, boxes.tolist(), strict=True)
        ]


def draw_found(found: Sequence[Detected], path: Path) -> None:
    """A picture of the first images with their surest objects.

    Raises:
        ConfigError: it cannot be written, as one of another kind than matplotlib knows.
    """
    rows = []
    for each in found[:DRAWN]:
        sure = [one for one in each.objects if one.score >= SURE]
        words = [f"{one.name} {100 * one.score:.0f} %" for one in sure]
        pixels = v2.functional.pil_to_tensor(read_image(each.image)).float() / 255
        rows.append([Drawn(pixels, torch.tensor([one.box for one in sure]).reshape(-1, 4), words)])
    try:
        draw_boxes(rows, ("",), path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot draw the picture ({first_line(error)})", where=str(path)) from error

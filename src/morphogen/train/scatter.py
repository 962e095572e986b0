"""Scattered digits: an embedded set of images with boxes, made from scikit-learn's handwritten digits.

Each image has one to three digits of different sizes and colours, none upon another, on an uneven ground. A box
surrounds a digit's ink. Digits of the test images are in no training image.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .digits import load_digits
from .tasks.detection import Boxes

SIDE = 64
"""Pixels of the square images."""

TRAINING, TESTING = 1024, 256
"""Images made."""

LEAST, MOST = 16, 32
"""Pixels of the square that a digit is drawn in."""

DIGITS = 3
"""At most, in an image."""

INK = 0.25
"""From which a pixel of a digit counts for its box."""

Scattered = tuple[Tensor, list[Boxes]]
"""Images (N, 3, 64, 64), uint8, and the digits of each; label 1 is the digit 0."""


@cache
def scatter() -> tuple[Scattered, Scattered]:
    """Training and test set. Always the same ones, made once, and not to be changed."""
    pixels, targets = load_digits()
    digits, labels = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(targets).long()
    testing = torch.arange(len(labels)) % 5 == 0  # as of the set `digits`
    parts = ((~testing, TRAINING, 0), (testing, TESTING, 1))
    train, test = (_made(digits[mask], labels[mask], count, seed) for mask, count, seed in parts)
    return train, test


def _made(digits: Tensor, labels: Tensor, count: int, seed: int) -> Scattered:
    dice = torch.Generator().manual_seed(seed)
    made = [_image(digits, labels, dice) for _ in range(count)]
    return torch.stack([image for image, _ in made]), [boxes for _, boxes in made]


def _image(digits: Tensor, labels: Tensor, dice: torch.Generator) -> tuple[Tensor, Boxes]:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=dice) * (high - low) + low

    def below(most: int) -> int:
        return int(torch.randint(most, (), generator=dice))

    colour = uniform(0, 1, 3, 1, 1)
    uneven = F.interpolate(uniform(-0.1, 0.1, 1, 3, 4, 4), size=(SIDE, SIDE), mode="bilinear", align_corners=True)[0]
    image, taken = colour + uneven, torch.zeros(SIDE, SIDE, dtype=torch.bool)
    boxes: list[list[float]] = []
    found: list[int] = []
    for _ in range(1 + below(DIGITS)):
        chosen, side = below(len(digits)), LEAST + below(MOST - LEAST + 1)
        left, top = below(SIDE - side + 1), below(SIDE - side + 1)
        contrast = torch.where(colour < 0.5, 1.0, -1.0) * uniform(0.5, 0.9, 3, 1, 1)
        area = slice(top, top + side), slice(left, left + side)
        if taken[area].any():
            continue
        taken[area] = True
        ink = F.interpolate(digits[chosen][None], size=(side, side), mode="bilinear", align_corners=False)[0, 0]
        image[:, *area] += contrast * ink.clamp(0, 1)
        rows, columns = ((ink > INK).any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        box = left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
        boxes.append([at / SIDE for at in box])
        found.append(int(labels[chosen]) + 1)
    image = image + 0.03 * torch.randn(image.shape, generator=dice)
    crowd = torch.zeros(len(boxes), dtype=torch.bool)
    objects = Boxes(torch.tensor([len(boxes)]), torch.tensor(boxes), torch.tensor(found), crowd)
    return image.clamp(0, 1).mul(255).round().to(torch.uint8), objects

"""Digits in clutter: an embedded set of images that a small network does not learn at once, made from scikit-learn's
handwritten digits.

Each image is a digit, turned, scaled and shifted, in a colour of its own among pieces of other digits on an uneven
ground, after the cluttered MNIST of Mnih et al., "Recurrent Models of Visual Attention" (NeurIPS 2014). Digits of the
test images are in no training image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .digits import load_digits

SIDE = 24
"""Pixels of the square images."""

TRAINING, TESTING = 2048, 1024
"""Images made."""

PIECES = 2
"""Of other digits in an image."""


def clutter() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test set: images (N, 3, 24, 24), uint8, and their classes (N,), int64. Always the same ones."""
    pixels, targets = load_digits()
    digits, labels = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(targets).long()
    testing = torch.arange(len(labels)) % 5 == 0  # as of the set `digits`
    return (
        _images(digits[~testing], labels[~testing], TRAINING, seed=0),
        _images(digits[testing], labels[testing], TESTING, seed=1),
    )


def _images(digits: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=dice) * (high - low) + low

    def drawn() -> Tensor:
        return torch.randint(len(digits), (count,), generator=dice)

    chosen = drawn()
    ink = _warped(digits[chosen], uniform(0.7, 0.95, count), uniform(-0.3, 0.3, count), uniform(-0.2, 0.2, 2, count))
    scraps = torch.zeros_like(ink)
    for _ in range(PIECES):
        piece = digits[drawn()].clone()
        corner = torch.randint(0, 5, (2,), generator=dice)
        mask = torch.zeros(8, 8)
        mask[corner[0] : corner[0] + 4, corner[1] : corner[1] + 4] = 1
        moved = _warped(piece * mask, uniform(0.5, 0.9, count), uniform(-3.1, 3.1, count), uniform(-1, 1, 2, count))
        scraps = torch.maximum(scraps, moved * uniform(0.3, 0.8, count).view(-1, 1, 1, 1))
    colour = uniform(0, 1, count, 3, 1, 1)
    uneven = F.interpolate(uniform(-0.1, 0.1, count, 3, 4, 4), size=(SIDE, SIDE), mode="bilinear", align_corners=True)
    ground = colour + uneven
    contrast = torch.where(colour < 0.5, 1.0, -1.0) * uniform(0.5, 0.8, count, 1, 1, 1)
    image = ground + contrast * torch.maximum(ink, 0.8 * scraps).clamp(0, 1)
    image = image + 0.03 * torch.randn(image.shape, generator=dice)
    return image.clamp(0, 1).mul(255).round().to(torch.uint8), labels[chosen]


def _warped(digits: Tensor, scale: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
    """Digits (N, 1, 8, 8), each on a canvas of its own (N, 1, SIDE, SIDE); `scale` is a share of the canvas, `turn` in
    radians, `shift` (2, N) in half canvases."""
    cos, sin = turn.cos() / scale, turn.sin() / scale
    rows = [torch.stack([cos, -sin, -shift[0] / scale], 1), torch.stack([sin, cos, -shift[1] / scale], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [len(digits), 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(digits, grid, align_corners=False)

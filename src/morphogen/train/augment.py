"""Augmentation: timm's on images and batches, drawn so that a seed and an epoch decide everything."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as v2

from ..parts.resizing import Size

Augment = Callable[[Image.Image], Image.Image]

Augments = Mapping[Size, Augment | None]
"""By the height and width of the images; None is no augmentation."""


@contextmanager
def seeded(*key: int, device: torch.device) -> Iterator[None]:
    """Random numbers of Python, NumPy and PyTorch that follow from the key alone; outside, nothing has changed.

    timm draws from all three. A key for each batch, or image, makes it the same whoever draws before.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            random.seed(seed)
            np.random.seed(seed)
            # torch.manual_seed would queue a call for every device there might be one day: slow, image by image.
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def image_order(count: int, repeats: int, generator: torch.Generator) -> Tensor:
    """Indices of one epoch, `count` of them; with repeated augmentation each image comes `repeats` times in a row.

    An epoch stays as long as it was, so it sees fewer images (Hoffer et al., CVPR 2020; DeiT). timm's
    RepeatAugSampler gives the same order, but from a generator of its own.
    """
    repeats = min(max(1, repeats), count)
    chosen = torch.randperm(count, generator=generator)[: -(-count // repeats)]
    return chosen.repeat_interleave(repeats)[:count]


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image of a batch (N, C, H, W) at its own random crop and flip, in one gather.

    torchvision's transforms draw one crop for a whole batch, and one call an image costs more than a step of
    a small network.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, n, 1), generator=generator)
    rows, columns = torch.arange(height) + top, torch.arange(width) + left
    if flip:
        columns = torch.where(torch.rand(n, 1, generator=generator) < 0.5, columns.flip(1), columns)
    index = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(n, 1, -1).to(images.device)
    return padded.flatten(2).gather(2, index.expand(-1, channels, -1)).view(images.shape)


def rand_augment(magnitude: float, size: Size, mean: Sequence[float]) -> Augment | None:
    """timm's `rand-mM-mstd0.5-inc1` for RGB images of that size; None for magnitude 0.

    Args:
        magnitude: M, of 10; timm's own text takes whole numbers only.
        size: of the images, which bounds the shifts.
        mean: colour, in [0, 1], of what comes into the image from outside.
    """
    if not magnitude:
        return None
    settings = {
        "translate_const": int(min(size) * 0.45),
        "img_mean": tuple(round(255 * m) for m in mean),
        "magnitude_max": 9.999,  # at 10 timm posterises to 0 bits, which Pillow 13 refuses
    }
    transform = rand_augment_transform("rand-mstd0.5-inc1", settings)
    for op in transform.ops:
        op.magnitude = magnitude
    return transform


def augmented(images: Tensor, augment: Augment) -> Tensor:
    """Every image of a batch (N, 3, H, W), uint8, by itself; through the host, where PIL works."""
    made = [v2.pil_to_tensor(augment(v2.to_pil_image(image))) for image in images.cpu()]
    return torch.stack(made).to(images.device)


def erased(images: Tensor, probability: float) -> Tensor:
    """Rectangles of normalised images (N, C, H, W) turned to noise, in place (DeiT's and VOLO's `pixel` mode)."""
    return RandomErasing(probability, mode="pixel", device=str(images.device))(images) if probability else images

"""Image files to bytes: read whole, or only as finely as a crop of them needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop, v2

from ..errors import ConfigError
from .augment import Augment, seeded
from .resize import Size

Sample = tuple[str, int]
"""Path and label of an image."""


def read_image(path: str) -> Image.Image:
    """An RGB image.

    Raises:
        ConfigError: the file is no image, or is cut short.
    """
    with _opened(path) as image:
        return image.convert("RGB")


def read_random_crop(path: str, size: Size) -> Image.Image:
    """A random part of an image, 8 to 100 % of its area, at `size` (Szegedy et al., CVPR 2015).

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its scale where the part still has at least `size` pixels then.

    Raises:
        ConfigError: as `read_image`.
    """
    with _opened(path) as image:
        top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])  # pyright: ignore
        full = image.size
        least = math.ceil(full[0] * size[1] / width), math.ceil(full[1] * size[0] / height)
        drafted = image.draft("RGB", least)  # None for formats that decode at one scale only
        scale = drafted[1][2] / full[0] if drafted else 1.0
        box = (scale * left, scale * top, scale * (left + width), scale * (top + height))
        return image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR, box)


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ConfigError(
            f"cannot read the image ({error})", where=path, todo="Remove the file or restore it"
        ) from error


@dataclass
class RandomCrops(Dataset[tuple[Tensor, int]]):
    """Random crops, flipped at random: (3, height, width), uint8, and label.

    Asked for by (position in the epoch, index of the sample); the key and the position decide the random numbers,
    however many processes share the work.
    """

    samples: Sequence[Sample]
    size: Size
    augment: Augment | None
    key: tuple[int, ...]

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        position, index = item
        path, label = self.samples[index]
        with seeded(*self.key, position, device=torch.device("cpu")):
            image = v2.RandomHorizontalFlip()(read_random_crop(path, self.size))
            return v2.functional.pil_to_tensor(self.augment(image) if self.augment else image), label


@dataclass
class CentreCrops(Dataset[tuple[Tensor, int]]):
    """The centre of each image, 7/8 of its shorter side, (3, height, width) uint8 and label."""

    samples: Sequence[Sample]
    size: Size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        centre = v2.Compose([v2.Resize(int(max(self.size) / 0.875)), v2.CenterCrop(self.size), v2.PILToTensor()])
        return centre(read_image(path)), label

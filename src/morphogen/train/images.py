"""Image files to bytes: read whole, or only as finely as a crop of them needs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop, v2

from ..errors import ConfigError, first_line
from ..parts.resizing import Size
from .augment import Augments, seeded
from .listed import Packed
from .token_labels.label_maps import ImageMaps

Sample = tuple[Any, int]
"""Path of an image, or its place in a larger file (`Packed`), and its label."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, as shares of its sides."""


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
"""What a file may be, whatever its name says. Pillow would start Ghostscript for another."""

MOST_PIXELS = 2**28
"""Of an image; a gigabyte when it is decoded. The largest cameras make 2**27.6."""

SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
"""Grey images of 16 bits, by Pillow's names; those of three channels it scales itself."""


class MapCrops(NamedTuple):
    """The label map of one image and the crop to take of it, or, as PyTorch's loader collates them, N of each.

    The crop is taken later, on the device and for a whole batch (`token_labels.token_targets`): there a map is
    dense over the classes, 1,000 for ImageNet, which a loader should not have to carry.

    Attributes:
        labels: the class, int64.
        scores: (top_k, rows, columns), float16: the map of the whole image.
        classes: (top_k, rows, columns), int32: the classes these scores are of.
        boxes: (4,), float32: the crop, see `Box`.
        flipped: bool: the crop was mirrored left to right.
    """

    labels: Tensor
    scores: Tensor
    classes: Tensor
    boxes: Tensor
    flipped: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> MapCrops:
        """All of it on a device, as `Tensor.to`."""
        return MapCrops(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))


def read_image(path: str | Packed) -> Image.Image:
    """An RGB image.

    Raises:
        ConfigError: the file is no image, is cut short, has more than MOST_PIXELS, or more than 16 bits a channel.
    """
    with _opened(path) as image:
        return _rgb(image)


def read_random_crop(path: str | Packed, size: Size) -> tuple[Image.Image, Box]:
    """A random part of an image, 8 to 100 % of its area, at `size` (Szegedy et al., CVPR 2015), and which it is.

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
        crop = _rgb(image).resize((size[1], size[0]), Image.Resampling.BILINEAR, box)
        return crop, (left / full[0], top / full[1], (left + width) / full[0], (top + height) / full[1])


def centre_crop(image: Image.Image, size: Size, share: float, interpolation: str = "bilinear") -> Image.Image:
    """The centre of an image, a share of its shorter side, at `size`."""
    resize = v2.Resize(int(max(size) / share), v2.InterpolationMode(interpolation))
    return v2.Compose([resize, v2.CenterCrop(size)])(image)


def _rgb(image: Image.Image) -> Image.Image:
    """Decoded, 8 bits a channel: of 16 bits the higher eight, as Pillow does for colours; it cuts grey off at 255."""
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its numbers have no known range (mode {image.mode}); 8 or 16 bits a channel are read")
    return image.convert("RGB")


def read_mask(path: str) -> Tensor:
    """The class of each pixel, (H, W), uint8, as the file has it.

    Raises:
        ConfigError: as `read_image`; it holds no numbers of classes.
    """
    with _opened(path) as image:
        mode, kind, numbers = image.mode, image.format, np.array(image)
    several = mode not in ("1", "L", "P") and not mode.startswith("I")
    extent = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    if several or kind == "JPEG" or extent[0] < 0 or extent[1] > 255:
        wrong = (
            f"mode {mode}"
            if several
            else "JPEG, which changes them"
            if kind == "JPEG"
            else f"{extent[0]} to {extent[1]}"
        )
        raise ConfigError(
            "a mask has the number of a class at each pixel",
            where=path,
            expected="one channel, such as a PNG's, with numbers from 0 to 255",
            found=wrong,
            todo="Make masks of colours into numbers, and save them without loss",
        )
    return torch.from_numpy(numbers.astype(np.uint8))


def size_of(path: str) -> Size:
    """Height and width, read off the head of the file; raises ConfigError as `read_image`."""
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: str | Packed) -> Iterator[Image.Image]:
    before = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice as many, wherever in the file they are named
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path if isinstance(path, str) else path.open(), formats=FORMATS) as image:
                yield image
    except Exception as error:  # whatever Pillow's decoders raise on a damaged file
        raise ConfigError(
            f"cannot read the image ({first_line(error)})",
            where=str(path),
            todo="Make it smaller"
            if isinstance(error, Image.DecompressionBombError)
            else "Remove the file or restore it",
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


@dataclass
class RandomCrops(Dataset[tuple[Tensor, int | MapCrops]]):
    """Random crops, flipped at random: (3, height, width), uint8, and label, or with `maps`, label map crop.

    Asked for by (position in the epoch, index of the sample, size); the key and the position decide the random
    numbers, however many processes share the work. Every size that is asked for has its entry in `augments`. Label
    maps do not follow RandAugment's small shifts, as in the authors' code.
    """

    samples: Sequence[Sample]
    augments: Augments
    key: tuple[int, ...]
    maps: ImageMaps | None = None

    def __getitem__(self, item: tuple[int, int, Size]) -> tuple[Tensor, int | MapCrops]:
        position, index, size = item
        (path, label), augment = self.samples[index], self.augments[size]
        with seeded(*self.key, position, device=torch.device("cpu")):
            image, box = read_random_crop(path, size)
            flipped = torch.rand(()) < 0.5
            if flipped:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = v2.functional.pil_to_tensor(augment(image) if augment else image)
        if self.maps is None:
            return pixels, label
        return pixels, MapCrops(torch.tensor(label), *self.maps[index], torch.tensor(box), flipped)


@dataclass
class CentreCrops(Dataset[tuple[Tensor, int]]):
    """The centre of each image, (3, height, width) uint8 and label; see `Crop` for how."""

    samples: Sequence[Sample]
    size: Size
    share: float = 0.875
    interpolation: str = "bilinear"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return v2.functional.pil_to_tensor(
            centre_crop(read_image(path), self.size, self.share, self.interpolation)
        ), label

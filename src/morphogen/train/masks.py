"""Images with a class for each pixel: folders of images and masks, and Cityscapes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets import Cityscapes
from torchvision.transforms import v2

from ..errors import ConfigError, first_line
from ..machine.ranks import rank, ranks
from ..parts.resizing import Size
from ..run.images import nearest
from .augment import Augments, seeded
from .contents import Contents, of_files
from .data import Batch, FileData, Pass, chosen_of, terminal
from .images import read_image, read_mask, size_of
from .recipe import Recipe
from .tasks import Segmentation
from .tasks.segmentation import IGNORED, SIDE

CITYSCAPES = "cityscapes"
SCALES = 0.5, 2.0
"""Of a training image, drawn at random: against `base_size`."""

Pair = tuple[str, str]
"""Paths of an image and its mask."""


class Masked(NamedTuple):
    """Images and their masks.

    Attributes:
        name: for tables.
        root: folder that all is in.
        train, test: of each image.
        classes: (256,), uint8: the class of each number in a file, IGNORED for none.
        counts: pixels of each class in the training masks.
    """

    name: str
    root: str
    train: list[Pair]
    test: list[Pair]
    classes: Tensor
    counts: Tensor


class MaskData(FileData):
    """Random crops of scaled images, whole images in tests."""

    one_class = "Look at the masks: a pixel's byte is the number of its class"

    def __init__(self, found: Masked, recipe: Recipe):
        """Sizes of the test images are read off their files.

        Raises:
            ConfigError: a setting that masks cannot follow, an image that cannot be read.
        """
        _refuse_others(recipe)
        self.found = found
        self._sizes = [_scaled(size_of(image), recipe.base_size) for image, _ in found.test]
        side = recipe.image_size or max(SIDE, min(self._sizes[0]) // SIDE * SIDE)
        task = Segmentation(len(found.counts), recipe.label_smoothing, self._sizes[0])
        super().__init__(found.name, found.counts, side, len(found.train), recipe, task)

    def _contents(self) -> Contents:
        parts: Contents = {}
        for name, pairs in (("training", self.found.train), ("test", self.found.test)):
            for kind, paths in zip(("images", "masks"), zip(*pairs, strict=True), strict=True):
                parts |= of_files(f"the {name} {kind}", self.found.root, [(path, 0) for path in paths])
        return parts | {"label that is ignored": f"{self.recipe.ignored}"}

    def _crops(self, way: Pass, augments: Augments) -> MaskedCrops:
        key, mean = (way.seed, way.epoch, 1), tuple(round(255 * value) for value in self.mean.tolist())
        recipe = self.recipe
        return MaskedCrops(
            self.found.train, self.found.classes, recipe.base_size, self.size, recipe.color_jitter, mean, key
        )

    def shown(self, side: int) -> str:
        """Whatever the network takes."""
        return "whole test images, and masks at their own size"

    def test_batches(self, size: Size | None = None) -> Iterator[Batch]:
        """Whole test images in order, normalised, and their masks as they are; where another size than that of the
        training crops is asked for, images are scaled alike."""
        for images, masks in self._test_bytes(size or self.size):
            yield self._normalised(images), masks

    def _test_bytes(self, size: Size) -> Iterator[Batch]:
        share = size[0] / self.size[0], size[1] / self.size[1]
        sizes = [(max(1, round(h * share[0])), max(1, round(w * share[1]))) for h, w in self._sizes]
        wholes = Wholes(self.found.test, self.found.classes, sizes)
        yield from self._load(wholes, batch_sampler=self._alike)

    @cached_property
    def _alike(self) -> list[list[int]]:
        """This rank's test images in batches of one size each, and one size of masks."""
        files = [(size_of(image), number) for number, (image, _) in enumerate(self.found.test)][rank() :: ranks()]
        groups = itertools.groupby(sorted(files), key=lambda pair: pair[0])
        each = [[number for _, number in group] for _, group in groups]
        count = self.recipe.batch_size
        return [numbers[first : first + count] for numbers in each for first in range(0, len(numbers), count)]


@dataclass
class MaskedCrops(Dataset[tuple[Tensor, Tensor]]):
    """Random scales, crops, colours and flips: (3, height, width), uint8, and the classes of its pixels.

    Asked for as `RandomCrops`. What a crop has beyond the image is of the mean colour, and ignored. A crop is made at
    the size that is asked for in one step, of the same part of the image at every size.

    Attributes:
        pairs: images and masks.
        classes: see `Masked`.
        base: the shorter side of an image at scale 1; None is its own.
        crop: height and width of a crop at the full resolution.
        jitter: of brightness, contrast and saturation.
        mean: colour of what is beyond the image.
        key: decides the random numbers, with the position.
    """

    pairs: Sequence[Pair]
    classes: Tensor
    base: int | None
    crop: Size
    jitter: float
    mean: tuple[int, ...]
    key: tuple[int, ...]

    def __getitem__(self, item: tuple[int, int, Size]) -> tuple[Tensor, Tensor]:
        position, index, size = item
        image, mask = _read(self.pairs[index], self.classes)
        with seeded(*self.key, position, device=torch.device("cpu")):
            height, width = image.shape[-2:]
            scale = float(torch.empty(()).uniform_(*SCALES)) * (self.base or min(height, width)) / min(height, width)
            h, w = (max(1, round(side / scale)) for side in self.crop)
            top, left = (int(torch.randint(abs(a - b) + 1, ())) for a, b in ((height, h), (width, w)))
            # A crop larger than the image has it somewhere inside.
            pads = [
                (at, small - has - at) if small > has else (0, 0)
                for at, small, has in ((left, w, width), (top, h, height))
            ]
            around = [pads[0][0], pads[1][0], pads[0][1], pads[1][1]]
            image = v2.functional.pad(image, around, fill=list(self.mean))
            mask = v2.functional.pad(mask[None], around, fill=IGNORED)
            box = (top if height > h else 0, left if width > w else 0, h, w)
            image = v2.functional.resized_crop(image, *box, list(size), antialias=True)
            # torchvision's own nearest neighbour takes the pixel at a place's corner, which shifts the mask.
            mask = nearest(v2.functional.crop(mask, *box), torch.Size(size))[0]
            pair = tv_tensors.Image(image), tv_tensors.Mask(mask)
            image, mask = v2.RandomHorizontalFlip()(*pair)
            image = v2.ColorJitter(*(self.jitter,) * 3)(image) if self.jitter else image
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


@dataclass
class Wholes(Dataset[tuple[Tensor, Tensor]]):
    """Whole images at their sizes, (3, height, width), uint8, and masks as they are."""

    pairs: Sequence[Pair]
    classes: Tensor
    sizes: Sequence[Size]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = _read(self.pairs[index], self.classes)
        return v2.functional.resize(image, list(self.sizes[index]), antialias=True), mask


def mask_folder(root: Path, recipe: Recipe) -> Masked:
    """`images/{train,val or test}/NAME.jpg` and `masks/.../NAME.png`; classes are counted from all masks.

    Raises:
        ConfigError: a folder is missing, an image has no mask or one of another size, or cannot be read.
    """
    test = next((name for name in ("val", "test") if (root / "images" / name).is_dir()), "val")
    parts = {name: _pairs(root, name) for name in ("train", test)}
    classes = torch.arange(256, dtype=torch.uint8)
    classes[recipe.ignored] = IGNORED
    counts = {name: sum(_count(pair, classes) for pair in _watched(pairs, name)) for name, pairs in parts.items()}
    both = torch.as_tensor(sum(counts.values()))
    if not both.any():
        raise ConfigError(
            "the masks ignore every pixel", where=str(root), found=f"labels {recipe.ignored} and {IGNORED} alone"
        )
    last = int(both.nonzero().max())
    train = [parts["train"][i] for i in chosen_of(len(parts["train"]), recipe.images)]
    tests = [parts[test][i] for i in chosen_of(len(parts[test]), recipe.test_images)]
    return Masked(root.name, str(root), train, tests, classes, torch.as_tensor(counts["train"])[: last + 1])


def cityscapes(folder: str, recipe: Recipe) -> Masked:
    """Fine annotations as torchvision reads them, in the 19 classes that are trained on.

    Raises:
        ConfigError: torchvision does not find it.
    """
    try:
        sets = [Cityscapes(folder, split, "fine", "semantic") for split in ("train", "val")]
    except Exception as error:  # whatever torchvision stumbles over
        raise ConfigError(f"cannot read Cityscapes ({first_line(error)})", where=folder) from error
    classes = torch.full((256,), IGNORED, dtype=torch.uint8)
    for kind in Cityscapes.classes:
        if 0 <= kind.train_id < IGNORED and kind.id >= 0:
            classes[kind.id] = kind.train_id
    pairs = [[(image, target[0]) for image, target in zip(each.images, each.targets, strict=True)] for each in sets]
    train, test = (
        [every[i] for i in chosen_of(len(every), count)]
        for every, count in zip(pairs, (recipe.images, recipe.test_images), strict=True)
    )
    there = int(classes[classes != IGNORED].max()) + 1
    return Masked(CITYSCAPES, folder, train, test, classes, torch.ones(there, dtype=torch.int64))


def _pairs(root: Path, part: str) -> list[Pair]:
    """Images of a part and the masks of the same names."""
    images, masks = (_by_name(root / kind / part) for kind in ("images", "masks"))
    alone = sorted(images.keys() ^ masks.keys())
    if alone or not images:
        raise ConfigError(
            "images without masks, or masks without images" if alone else "no images and masks",
            where=str(root),
            expected=f"images/{part}/NAME.jpg and masks/{part}/NAME.png of the same names, in train and in val or test",
            found=", ".join(alone[:5]) + (" ..." if len(alone) > 5 else "") if alone else f"none in images/{part}",
        )
    return [(images[name], masks[name]) for name in images]


def _by_name(folder: Path) -> dict[str, str]:
    """The files of a folder by name without suffix, hidden ones (`.DS_Store`) left out."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("[!.]*")):
        if path.is_file() and found.setdefault(path.stem, str(path)) != str(path):
            raise ConfigError(
                "two files of one name",
                where=str(folder),
                expected="one image, and one mask, of each name",
                found=f"{Path(found[path.stem]).name} and {path.name}",
            )
    return found


def _watched(pairs: Sequence[Pair], name: str) -> Any:
    return track(pairs, f"counting the classes of {name} masks", transient=True, disable=not terminal())


def _count(pair: Pair, classes: Tensor) -> Tensor:
    """Pixels of each class in a mask, ignored ones left out."""
    mask, size = read_mask(pair[1]), size_of(pair[0])
    if tuple(mask.shape) != size:
        raise ConfigError(
            "a mask of another size than its image",
            where=pair[1],
            expected=f"{size[0]} x {size[1]} pixels",
            found=f"{mask.shape[0]} x {mask.shape[1]}",
        )
    return torch.bincount(classes[mask.int()].flatten(), minlength=256)[:IGNORED]


def _read(pair: Pair, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Image (3, H, W) and classes (H, W), uint8."""
    return v2.functional.pil_to_tensor(read_image(pair[0])), classes[read_mask(pair[1]).int()]


def _scaled(size: Size, base: int | None) -> Size:
    """A size whose shorter side is `base`."""
    return size if base is None else (round(size[0] * base / min(size)), round(size[1] * base / min(size)))


def _refuse_others(recipe: Recipe) -> None:
    """Raises ConfigError for augmentation that masks cannot follow."""
    for key in ("randaugment", "erasing", "mixup", "cutmix", "token_labels", "class_weights"):
        if getattr(recipe, key):
            raise ConfigError(
                "masks cannot follow it",
                where=key,
                expected="0 or none; segmentation has random scales, crops, flips and color_jitter",
                found=f"{getattr(recipe, key)}",
            )

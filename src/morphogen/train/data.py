"""Images and labels in batches: from memory where they fit, else decoded by worker processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import CIFAR10, CIFAR100, DatasetFolder, ImageFolder, ImageNet
from torchvision.transforms import v2

from ..errors import ConfigError
from ..program import first_line
from .config import Recipe

T = TypeVar("T")

IN_MEMORY = 64
"""Images up to this side (pixels) are decoded once and kept as bytes."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batch = tuple[Tensor, Tensor]
"""Normalised images (N, 3, H, W), float32, and labels (N,), int64, on the device of the run."""


class Data(ABC):
    """A training set and a test set."""

    name: str
    num_classes: int
    image_size: int
    steps: int
    """Batches in an epoch; the last, incomplete one is left out."""

    @abstractmethod
    def train_batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Shuffled, augmented batches, the same for the same seed and epoch."""

    @abstractmethod
    def test_batches(self) -> Iterator[Batch]:
        """All test images in order."""

    def example(self, batch_size: int) -> Tensor:
        """An input of the right shape."""
        return torch.zeros(batch_size, 3, self.image_size, self.image_size)


class MemoryData(Data):
    """Images kept as bytes on the device; augmentation on whole batches there."""

    def __init__(self, name: str, train: Batch, test: Batch, recipe: Recipe, crop: int, flip: bool):
        """`crop` is the padding in pixels for random crops; `train` and `test` are uint8 images and labels."""
        device = recipe.torch_device()
        self.name, self.batch_size, self.crop, self.flip = name, recipe.batch_size, crop, flip
        self.train_images, self.train_labels = (t.to(device) for t in _subset(train, recipe.images))
        self.test_images, self.test_labels = (t.to(device) for t in _subset(test, recipe.test_images))
        self.num_classes = int(torch.cat([self.train_labels, self.test_labels]).max()) + 1
        self.image_size = self.train_images.shape[-1]
        self.steps = len(self.train_images) // self.batch_size
        _check_steps(self.steps, len(self.train_images), recipe)
        scaled = self.train_images.float().div_(255)
        self.mean = scaled.mean((0, 2, 3)).view(3, 1, 1)
        self.std = scaled.std((0, 2, 3)).view(3, 1, 1).clamp_min_(1 / 255)  # a channel may be constant

    def train_batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Random crops after padding, and horizontal flips where they keep the meaning."""
        # Seeds of neighbouring runs must not share epochs, hence the product with a large odd number.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.train_images), generator=generator)
        for step in range(self.steps):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size].to(self.train_images.device)
            images = crop_and_flip(self.train_images[chosen], self.crop, self.flip, generator)
            yield self._normalise(images), self.train_labels[chosen]

    def test_batches(self) -> Iterator[Batch]:
        """In batches of 500."""
        for images, labels in zip(self.test_images.split(500), self.test_labels.split(500), strict=True):
            yield self._normalise(images), labels

    def _normalise(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(self.mean).div_(self.std)


class StreamData(Data):
    """Images decoded when needed (torchvision datasets and transforms, PyTorch's loader)."""

    def __init__(self, name: str, train: DatasetFolder, test: DatasetFolder, recipe: Recipe):
        self.name, self.recipe, self.device = name, recipe, recipe.torch_device()
        self.num_classes, self.image_size = len(train.classes), recipe.image_size or 224
        size = self.image_size
        last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        train.transform = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), *last])
        test.transform = v2.Compose([v2.Resize(int(size / 0.875), antialias=True), v2.CenterCrop(size), *last])
        self.train = torch.utils.data.Subset(train, _chosen(len(train), recipe.images))
        self.test = torch.utils.data.Subset(test, _chosen(len(test), recipe.test_images))
        self.steps = len(self.train) // recipe.batch_size
        _check_steps(self.steps, len(self.train), recipe)

    def train_batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Random resized crops and horizontal flips."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        yield from self._load(self.train, shuffle=True, generator=generator, drop_last=True)

    def test_batches(self) -> Iterator[Batch]:
        """Centre crops."""
        yield from self._load(self.test)

    def _load(self, dataset: torch.utils.data.Dataset[Batch], **options: Any) -> Iterator[Batch]:
        loader = torch.utils.data.DataLoader(
            dataset,
            self.recipe.batch_size,
            num_workers=self.recipe.workers,
            pin_memory=self.device.type == "cuda",
            **options,
        )
        for images, labels in in_one_line(loader):
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def in_one_line(loader: Iterable[T]) -> Iterator[T]:
    """The batches of a loader; an error from a worker process comes without that process's traceback."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except ConfigError as error:
            raise ConfigError(str(error).strip().splitlines()[-1].partition("ConfigError: ")[2] or str(error)) from None
        yield batch


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


def load_data(recipe: Recipe) -> Data:
    """The data a recipe names.

    Raises:
        ConfigError: a missing or empty folder, an image that cannot be read, fewer images than a batch.
    """
    kind, _, folder = recipe.data.rpartition(":")
    if not kind and folder == "digits":
        return _digits(recipe)
    if kind in ("cifar10", "cifar100"):
        dataset = CIFAR10 if kind == "cifar10" else CIFAR100
        try:
            pairs = [dataset(folder, train=train) for train in (True, False)]
        except (RuntimeError, OSError) as error:
            raise ConfigError(f"cannot read {kind} ({error})", where=folder) from error
        train, test = [(torch.from_numpy(p.data).permute(0, 3, 1, 2), torch.tensor(p.targets)) for p in pairs]
        return MemoryData(
            kind, _resized(train, recipe.image_size), _resized(test, recipe.image_size), recipe, crop=4, flip=True
        )
    if kind == "imagenet":
        try:
            return StreamData(kind, ImageNet(folder, "train"), ImageNet(folder, "val"), recipe)
        except (RuntimeError, OSError) as error:
            raise ConfigError(f"cannot read ImageNet ({error})", where=folder) from error
    return _folder(Path(recipe.data), recipe)


def _digits(recipe: Recipe) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, enlarged to 16 x 16; every fifth is for testing."""
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    grey = torch.from_numpy(pixels).view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    images, labels = grey.expand(-1, 3, -1, -1), torch.from_numpy(targets).long()
    testing = torch.arange(len(labels)) % 5 == 0
    size = recipe.image_size or 16
    train, test = (_resized((images[mask].contiguous(), labels[mask]), size) for mask in (~testing, testing))
    return MemoryData("digits", train, test, recipe, crop=size // 8, flip=False)


def _folder(root: Path, recipe: Recipe) -> Data:
    if not root.is_dir():
        raise ConfigError(
            "no such data",
            where=str(root),
            expected="digits, cifar10:FOLDER, cifar100:FOLDER, imagenet:FOLDER or an image folder",
        )
    names = ["train", next((name for name in ("val", "test") if (root / name).is_dir()), "val")]
    sets = [_part(root, name) for name in names]
    if sets[0].classes != sets[1].classes:
        raise ConfigError(
            "training and test folders hold different classes",
            where=str(root),
            expected=f"{sets[0].classes}",
            found=f"{sets[1].classes}",
        )
    sizes = {read_image(sets[0].samples[i][0]).size for i in (0, len(sets[0]) // 2, len(sets[0]) - 1)}
    if len(sizes) == 1 and max(next(iter(sizes))) <= IN_MEMORY:
        train, test = (
            _resized(_decode(dataset, name), recipe.image_size) for dataset, name in zip(sets, names, strict=True)
        )
        return MemoryData(root.name, train, test, recipe, crop=train[0].shape[-1] // 8, flip=True)
    return StreamData(root.name, sets[0], sets[1], recipe)


def training_images(data: str) -> ImageFolder:
    """The training images that a recipe's `data` names, where they are files.

    Raises:
        ConfigError: there is no such folder.
    """
    kind, _, folder = data.rpartition(":")
    if kind not in ("", "imagenet") or not Path(folder).is_dir():
        raise ConfigError("no such image folder", where=data, expected="a folder with train/CLASS/IMAGE")
    return _part(Path(folder), "train")


def _part(root: Path, name: str) -> ImageFolder:
    try:
        return ImageFolder(str(root / name), loader=read_image)
    except OSError as error:
        raise ConfigError(
            f"not an image folder ({error})",
            where=str(root),
            expected="train/CLASS/IMAGE and val/CLASS/IMAGE (or test/...)",
        ) from error


def read_image(path: str) -> Image.Image:
    """An RGB image.

    Raises:
        ConfigError: the file is no image, or is cut short.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ConfigError(
            f"cannot read the image ({error})", where=path, todo="Remove the file or restore it"
        ) from error


def _decode(dataset: ImageFolder, name: str) -> Batch:
    """All images of one size as bytes; torchvision decodes JPEG faster, but PIL reads every format."""
    images: list[Tensor] = []
    for path, _ in track(dataset.samples, f"reading {name} images", transient=True, disable=not terminal()):
        image = torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1)
        if images and image.shape != images[0].shape:
            raise ConfigError(
                "images of this folder differ in size",
                where=path,
                expected=f"{tuple(images[0].shape[1:])}",
                found=f"{tuple(image.shape[1:])}",
            )
        images.append(image)
    return torch.stack(images), torch.tensor(dataset.targets)


def terminal() -> bool:
    """Whether someone watches; a progress bar in a file is only noise."""
    from rich.console import Console

    return Console().is_terminal


def _resized(batch: Batch, size: int | None) -> Batch:
    images, labels = batch
    if size is None or images.shape[-2:] == (size, size):
        return batch
    try:
        return v2.functional.resize(images, [size, size], antialias=True), labels
    except RuntimeError as error:
        reason = f"images cannot have this size ({first_line(error)})"
        raise ConfigError(reason, where="image_size", found=f"{size}") from error


def _subset(batch: Batch, count: int | None) -> Batch:
    chosen = _chosen(len(batch[0]), count)
    return batch[0][chosen], batch[1][chosen]


def _chosen(total: int, count: int | None) -> list[int]:
    """All indices, or `count` of them, the same in every run."""
    if count is None or count >= total:
        return list(range(total))
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort().values.tolist()


def _check_steps(steps: int, images: int, recipe: Recipe) -> None:
    if not steps:
        raise ConfigError(
            "fewer training images than one batch",
            where=recipe.data,
            expected=f"at least {recipe.batch_size}",
            found=f"{images}",
        )

"""Where images come from: scikit-learn's digits, plain or in clutter; folders; CIFAR, ImageNet and Cityscapes as
torchvision reads them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder, ImageNet
from torchvision.transforms import v2

from ..errors import ConfigError, first_line
from ..spec import near
from .boxes import BoxFiles, ScatterData
from .clutter import clutter
from .data import IN_MEMORY, Batch, Data, MemoryData, StreamData, terminal
from .images import read_image
from .listed import Listed, of_csv, of_hugging_face, of_shards
from .masks import CITYSCAPES, MaskData, cityscapes, mask_folder
from .recipe import DENSE_ALONE, Recipe

NAMED = "digits clutter scatter cifar10 cifar100 imagenet segmentation cityscapes detection csv hf wds".split()


def load_data(recipe: Recipe) -> Data:
    """The data a recipe names; a warning where some classes have no training image.

    Raises:
        ConfigError: a missing or empty folder, an image that cannot be read, fewer images than a batch,
            training images of one class alone.
    """
    data = _load(recipe)
    counts = data.counts
    there = int((counts > 0).sum())
    if there < 2:
        raise ConfigError(
            "all training images are of one class, so there is nothing to learn",
            where=recipe.data,
            expected="two classes or more",
            found=f"{data.images} images of class {int(counts.argmax())}",
            todo="Set images higher" if recipe.images else data.one_class,
        )
    if there < data.num_classes:
        missing = (counts == 0).nonzero().flatten().tolist()
        names = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        warnings.warn(
            f"{recipe.data}: {len(missing)} of {data.num_classes} classes have no training image (numbers {names})",
            stacklevel=2,
        )
    return data


def _load(recipe: Recipe) -> Data:
    kind, _, folder = recipe.data.rpartition(":")
    if kind == "segmentation":
        return MaskData(mask_folder(Path(folder), recipe), recipe)
    if kind == CITYSCAPES:
        return MaskData(cityscapes(folder, recipe), recipe)
    if kind == "detection":
        _refuse_dense(recipe, but="color_jitter")
        return BoxFiles(Path(folder), recipe)
    _refuse_dense(recipe)
    if not kind and folder == "scatter":
        return ScatterData(recipe)
    if not kind and folder == "digits":
        return _digits(recipe)
    if not kind and folder == "clutter":
        train, test = (_resized(part, recipe.image_size) for part in clutter())
        return MemoryData("clutter", train, test, recipe, crop=2, flip=False, classes="0123456789")
    if kind in ("cifar10", "cifar100"):
        dataset = CIFAR10 if kind == "cifar10" else CIFAR100
        try:
            pairs = [dataset(folder, train=train) for train in (True, False)]
        except Exception as error:  # whatever torchvision stumbles over in a damaged file
            raise ConfigError(f"cannot read {kind} ({first_line(error)})", where=folder) from error
        train, test = [(torch.from_numpy(p.data).permute(0, 3, 1, 2), torch.tensor(p.targets)) for p in pairs]
        train, test = (_resized(part, recipe.image_size) for part in (train, test))
        return MemoryData(kind, train, test, recipe, crop=4, flip=True, classes=pairs[0].classes)
    if kind == "imagenet":
        try:
            return StreamData(kind, ImageNet(folder, "train"), ImageNet(folder, "val"), recipe)
        except (ConfigError, MemoryError):
            raise
        except Exception as error:  # whatever torchvision stumbles over in a damaged file
            raise ConfigError(f"cannot read ImageNet ({first_line(error)})", where=folder) from error
    if kind == "csv":
        return _of_parts(Path(folder).stem, of_csv(Path(folder)), recipe)
    if recipe.data.startswith("hf:"):  # whose names may have a colon
        return _of_parts(Path(recipe.data[3:]).name, of_hugging_face(recipe.data[3:]), recipe)
    if kind == "wds":
        return _of_parts(Path(folder).name.partition("train")[0].strip("-_.") or "shards", of_shards(folder), recipe)
    return _folder(Path(recipe.data), recipe)


def _refuse_dense(recipe: Recipe, but: str = "") -> None:
    """Raises ConfigError for settings of segmentation, where each pixel does not have a class."""
    plain = Recipe()
    for key in DENSE_ALONE:
        if key != but and getattr(recipe, key) != getattr(plain, key):
            raise ConfigError(
                "a setting of segmentation, and the data have no masks",
                where=key,
                expected=f"{getattr(plain, key)}, or data segmentation:FOLDER or cityscapes:FOLDER",
                found=f"{getattr(recipe, key)}",
            )


def _digits(recipe: Recipe) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, enlarged to 16 x 16; every fifth is for testing."""
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    grey = torch.from_numpy(pixels).view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    images, labels = grey.expand(-1, 3, -1, -1), torch.from_numpy(targets).long()
    testing = torch.arange(len(labels)) % 5 == 0
    size = recipe.image_size or 16
    train, test = (_resized((images[mask].contiguous(), labels[mask]), size) for mask in (~testing, testing))
    return MemoryData("digits", train, test, recipe, crop=size // 8, flip=False, classes="0123456789")


def _folder(root: Path, recipe: Recipe) -> Data:
    if not root.is_dir():
        raise ConfigError(
            "no such data",
            where=str(root),
            expected="digits, clutter, scatter, cifar10:FOLDER, cifar100:FOLDER, imagenet:FOLDER, "
            "segmentation:FOLDER, cityscapes:FOLDER, detection:FOLDER, csv:FILE, hf:NAME_OR_FOLDER, wds:PATTERN "
            "or an image folder",
            todo=near(str(root).partition(":")[0], NAMED),
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
    return _of_parts(root.name, sets, recipe)


def _of_parts(name: str, parts: Sequence[ImageFolder | Listed], recipe: Recipe) -> Data:
    """Training and test images, in memory where they are all of one small size."""
    train, test = parts
    sizes = {read_image(train.samples[i][0]).size for i in (0, len(train) // 2, len(train) - 1)}
    if len(sizes) > 1 or max(next(iter(sizes))) > IN_MEMORY:
        return StreamData(name, train, test, recipe)
    decoded = [
        _resized(_decode(part, of), recipe.image_size) for part, of in zip(parts, ("train", "test"), strict=True)
    ]
    crop = decoded[0][0].shape[-1] // 8
    return MemoryData(name, decoded[0], decoded[1], recipe, crop=crop, flip=True, classes=train.classes)


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


def _decode(dataset: ImageFolder | Listed, name: str) -> Batch:
    """All images of one size as bytes; torchvision decodes JPEG faster, but PIL reads every format."""
    images: list[Tensor] = []
    for path, _ in track(dataset.samples, f"reading {name} images", transient=True, disable=not terminal()):
        image = torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1)
        if images and image.shape != images[0].shape:
            raise ConfigError(
                "images of this folder differ in size",
                where=str(path),
                expected=f"{tuple(images[0].shape[1:])}",
                found=f"{tuple(image.shape[1:])}",
            )
        images.append(image)
    return torch.stack(images), torch.tensor(dataset.targets)


def _resized(batch: Batch, size: int | None) -> Batch:
    images, labels = batch
    if size is None or images.shape[-2:] == (size, size):
        return batch
    try:
        return v2.functional.resize(images, [size, size], antialias=True), labels
    except RuntimeError as error:
        reason = f"images cannot have this size ({first_line(error)})"
        raise ConfigError(reason, where="image_size", found=f"{size}") from error

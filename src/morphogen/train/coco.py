"""Folders of images with an `annotations.json` as COCO has it (cocodataset.org, "Data format"), read as data alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, first_line
from ..machine.reading import MALFORMED, parse_json, read_text, whole, within, word
from ..parts.resizing import Size
from .tasks.detection import GROUND, Boxes

ANNOTATIONS = "annotations.json"
EVERY = 5
"""Where the test has no folder of its own, each so-manieth image is for it."""

MOST_SIDE, MOST_NUMBER = 2**16, 2**53
"""Pixels of an image's side, and numbers of images and categories (which COCO's tools keep as JavaScript may)."""

ROUNDING = 1.0
"""Pixels by which a box may be beyond its image, as COCO's own are; what is beyond is cut off."""


class Annotated(NamedTuple):
    """An image file, its height and width as annotated, and its objects."""

    path: str
    size: Size
    objects: Boxes


class Annotations(NamedTuple):
    """What a folder holds.

    Attributes:
        classes: names, that of the background first; labels count along.
        train, test: images, by number.
    """

    classes: list[str]
    train: list[Annotated]
    test: list[Annotated]


def read_coco(root: Path) -> Annotations:
    """`train/` and `val/` or `test/`, each with its `annotations.json`, or one for all images of the folder.

    Raises:
        ConfigError: a file is missing or damaged, annotations that do not fit each other, a box that is none.
    """
    if (root / ANNOTATIONS).is_file():
        classes, every = _part(root)
        train = [each for number, each in enumerate(every) if number % EVERY]
        return _checked(root, classes, train, every[::EVERY])
    test = next((name for name in ("val", "test") if (root / name).is_dir()), "val")
    (classes, train), (others, test) = (_part(root / name) for name in ("train", test))
    if classes != others:
        raise ConfigError(
            "training and test annotations have different categories",
            where=str(root),
            expected=_listed(classes),
            found=_listed(others),
        )
    return _checked(root, classes, train, test)


def _checked(root: Path, classes: list[str], train: list[Annotated], test: list[Annotated]) -> Annotations:
    for name, part in (("training", train), ("test", test)):
        if not any(bool((~each.objects.crowd).any()) for each in part):
            raise ConfigError(f"no {name} image has a box", where=str(root), expected="one at least, of no crowd")
    return Annotations(classes, train, test)


def _part(folder: Path) -> tuple[list[str], list[Annotated]]:
    """The classes, and the images in the order of their numbers."""
    path = folder / ANNOTATIONS
    try:
        found = parse_json(read_text(path))
        categories = {whole(c["id"], 0, MOST_NUMBER): word(c["name"]) for c in found["categories"]}
        images = {whole(each["id"], 0, MOST_NUMBER): each for each in found["images"]}
        if len(categories) < len(found["categories"]) or len(images) < len(found["images"]):
            raise ValueError("a number is there twice")
        boxes: dict[int, list[Any]] = {number: [] for number in images}
        for each in found["annotations"]:
            if each["image_id"] not in boxes or each["category_id"] not in categories:
                raise ValueError(
                    f"an annotation of image {str(each['image_id'])[:20]} and category "
                    f"{str(each['category_id'])[:20]}, of which one is not there"
                )
            boxes[each["image_id"]].append(each)
    except OSError as error:
        raise ConfigError(
            f"no annotations ({first_line(error)})",
            where=str(path),
            expected=f"images with {ANNOTATIONS} in FOLDER/train and FOLDER/val (or test), or in FOLDER",
        ) from error
    except MALFORMED as error:
        raise ConfigError(f"no annotations as COCO has them ({_reason(error)})", where=str(path)) from error
    labels = {number: label for label, number in enumerate(sorted(categories), 1)}
    classes = [GROUND, *(categories[number] for number in labels)]
    return classes, [_image(folder, images[number], boxes[number], labels) for number in sorted(images)]


def _image(folder: Path, image: Any, annotations: Sequence[Any], labels: dict[int, int]) -> Annotated:
    """One image; raises ConfigError with its name."""
    name = str(image.get("file_name", "without a file_name"))[:200] if isinstance(image, dict) else "?"
    try:
        size = whole(image["height"], 1, MOST_SIDE), whole(image["width"], 1, MOST_SIDE)
        path = _inside(folder, word(image["file_name"]))
        boxes = [_box(each["bbox"], size) for each in annotations]
        crowd = [bool(whole(each.get("iscrowd", 0), 0, 1)) for each in annotations]
    except (OSError, *MALFORMED) as error:
        raise ConfigError(_reason(error), where=f"{folder / ANNOTATIONS}, {name}") from error
    return Annotated(
        path,
        size,
        Boxes(
            torch.tensor([len(boxes)]),
            torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4).float(),
            torch.tensor([labels[each["category_id"]] for each in annotations], dtype=torch.int64),
            torch.tensor(crowd, dtype=torch.bool),
        ),
    )


def _inside(folder: Path, name: str) -> str:
    """The path of a file below the folder, or below `images` in it; raises ValueError."""
    for path in (folder / name, folder / "images" / name):
        if path.resolve().is_relative_to(folder.resolve()) and path.is_file():
            return str(path)
    raise ValueError("no such image file in the folder")


def _box(given: Any, size: Size) -> list[float]:
    """Left, top, width and height in pixels to shares of the sides; raises ValueError."""
    left, top, width, height = (within(number, -MOST_SIDE, 2 * MOST_SIDE) for number in given)
    shown = f"the box [{left:g}, {top:g}, {width:g}, {height:g}]"
    if width <= 0 or height <= 0:
        raise ValueError(f"{shown} has no area")
    right, bottom = left + width, top + height
    if min(left, top) < -ROUNDING or right > size[1] + ROUNDING or bottom > size[0] + ROUNDING:
        raise ValueError(f"{shown} (left, top, width, height) is not inside the image of {size[1]} x {size[0]} pixels")
    left, right = (min(max(x, 0.0), size[1]) for x in (left, right))
    top, bottom = (min(max(y, 0.0), size[0]) for y in (top, bottom))
    if right <= left or bottom <= top:
        raise ValueError(f"{shown} has no area inside the image of {size[1]} x {size[0]} pixels")
    return [left / size[1], top / size[0], right / size[1], bottom / size[0]]


def _reason(error: Exception) -> str:
    """Our own words, or what Python says of data of another kind."""
    return f"no {error}" if isinstance(error, KeyError) else first_line(error).removeprefix("ValueError: ")


def _listed(classes: Sequence[str]) -> str:
    return ", ".join(classes[1:6]) + (f" and {len(classes) - 6} more" if len(classes) > 6 else "")


def class_counts(images: Sequence[Annotated], classes: int) -> Tensor:
    """Objects of each class, crowds among them; of the background, the images."""
    labels = torch.cat([each.objects.labels for each in images])
    return torch.bincount(labels, minlength=classes).index_fill(0, torch.tensor([0]), len(images))

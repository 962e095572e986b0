"""Images with boxes: a folder as COCO has it, or digits scattered over images, in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..errors import ConfigError
from ..machine.ranks import rank, ranks
from ..parts.resizing import Size
from .augment import Augments, image_order, seeded
from .coco import Annotated, class_counts, read_coco
from .contents import Contents, of_arrays, of_files
from .data import IMAGENET_MEAN, Batch, Data, FileData, Pass, chosen_of
from .images import read_image
from .recipe import Recipe
from .scatter import SIDE, scatter
from .tasks import Detection
from .tasks.detection import GROUND, Boxes

DEFAULT_SIDE = 320
"""Pixels of a side where the recipe does not say."""

FILL = tuple(round(255 * value) for value in IMAGENET_MEAN)
"""The colour of what an image leaves free of its square: nothing, once it is normalised."""

TEST_BATCH = 64
"""Images at a time that are in memory."""

FITTED = "fitted"
"""The note of images that are as large as their square allows, at its left and top."""


class BoxData(Data):
    """What both kinds share: images of values from 0 to 1, since detectors normalise them by themselves."""

    one_class: ClassVar[str] = "Annotate training images"

    def __init__(self, name: str, counts: Tensor, image_size: int, images: int, recipe: Recipe, classes: Sequence[str]):
        """Raises ConfigError: a setting that boxes cannot follow."""
        _refuse_others(recipe)
        super().__init__(name, counts, image_size, images, recipe, Detection(len(counts)))
        self.mean, self.std, self.classes = torch.zeros(3), torch.ones(3), classes

    def framing(self, side: int) -> dict[str, str]:
        """The whole image, its shape kept."""
        return {"crop": FITTED, "interpolation": "bilinear"}


class BoxFiles(BoxData, FileData):
    """Images of a folder, each as large as a square of the image size allows; mirrored at random in training."""

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, Boxes]]) -> tuple[Tensor, Boxes]:
        """A batch."""
        images, objects = zip(*items, strict=True)
        return torch.stack(images), Boxes.of(objects)

    def __init__(self, root: Path, recipe: Recipe):
        """Read the annotations; raises ConfigError, see `read_coco`."""
        found = read_coco(root)
        self.root = root
        self.train = [found.train[i] for i in chosen_of(len(found.train), recipe.images)]
        self.test = [found.test[i] for i in chosen_of(len(found.test), recipe.test_images)]
        counts, side = class_counts(self.train, len(found.classes)), recipe.image_size or DEFAULT_SIDE
        super().__init__(root.resolve().name, counts, side, len(self.train), recipe, found.classes)

    def _contents(self) -> Contents:
        parts: Contents = {}
        for name, images in (("training", self.train), ("test", self.test)):
            parts |= of_files(f"the {name} images", str(self.root), [(each.path, 0) for each in images])
            parts |= _of_objects(name, [each.objects for each in images])
        return parts

    def _crops(self, way: Pass, augments: Augments) -> Fitted:
        return Fitted(self.train, (way.seed, way.epoch, 1), self.recipe.color_jitter)

    def _test_bytes(self, size: Size) -> Iterator[Batch]:
        mine, count = range(len(self.test))[rank() :: ranks()], self.recipe.batch_size
        batches = [[(0, index, size) for index in mine[at : at + count]] for at in range(0, len(mine), count)]
        yield from self._load(Fitted(self.test), batch_sampler=batches)

    def shown(self, side: int) -> str:
        """Its shape is kept."""
        return f"whole test images, fitted into {side} pixels, and their boxes"


@dataclass
class Fitted(Dataset[tuple[Tensor, Boxes]]):
    """Whole images, (3, height, width), uint8, and their objects; asked for as `RandomCrops`.

    Attributes:
        images: files and objects.
        key: decides random flips and colours, with the position; None for neither.
        jitter: of brightness, contrast and saturation.
    """

    images: Sequence[Annotated]
    key: tuple[int, ...] | None = None
    jitter: float = 0.0

    def __getitem__(self, item: tuple[int, int, Size]) -> tuple[Tensor, Boxes]:
        position, index, size = item
        each = self.images[index]
        image, objects = read_image(each.path), each.objects
        if (image.height, image.width) != each.size:
            raise ConfigError(
                "the image has another size than its annotations say",
                where=each.path,
                expected=f"{each.size[1]} x {each.size[0]} pixels",
                found=f"{image.width} x {image.height}",
            )
        if self.key is not None:
            with seeded(*self.key, position, device=torch.device("cpu")):
                if torch.rand(()) < 0.5:
                    image, objects = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), objects.flipped()
                image = v2.ColorJitter(*(self.jitter,) * 3)(image) if self.jitter else image
        pixels, (height, width) = fitted(image, size)
        shares = torch.tensor([width / size[1], height / size[0]]).repeat(2)
        return pixels, objects._replace(boxes=objects.boxes * shares)


def fitted(image: Image.Image, size: Size) -> tuple[Tensor, Size]:
    """An image (3, *size), uint8, at the left and top of which the whole one is, its shape kept; and how much of it
    that is."""
    scale = min(size[0] / image.height, size[1] / image.width)
    sides = max(1, round(image.height * scale)), max(1, round(image.width * scale))
    small = image.resize((sides[1], sides[0]), Image.Resampling.BILINEAR)
    around = [0, 0, size[1] - sides[1], size[0] - sides[0]]
    return v2.functional.pad(v2.functional.pil_to_tensor(small), around, fill=list(FILL)), sides


class ScatterData(BoxData):
    """The digits of `scatter`, kept as bytes on the device; neither mirrored nor moved."""

    def __init__(self, recipe: Recipe):
        """Make them; raises ConfigError for a colour jitter."""
        if recipe.color_jitter:
            raise ConfigError("its colours are random already", where="color_jitter", expected="0")
        side, device = recipe.image_size or SIDE, recipe.torch_device()
        parts = []
        for (images, objects), count in zip(scatter(), (recipe.images, recipe.test_images), strict=True):
            chosen = chosen_of(len(images), count)
            pixels = v2.functional.resize(images[chosen], [side, side], antialias=True).to(device)
            parts.append((pixels, [objects[i] for i in chosen]))
        (self.train_images, self.train), (self.test_images, self.test) = parts
        classes = [GROUND, *"0123456789"]
        counts = torch.bincount(Boxes.of(self.train).labels, minlength=len(classes))
        counts[0] = len(self.train)
        super().__init__("scatter", counts, side, len(self.train), recipe, classes)

    def _contents(self) -> Contents:
        arrays = of_arrays({"training images": self.train_images, "test images": self.test_images})
        return arrays | _of_objects("training", self.train) | _of_objects("test", self.test)

    def _made_at(self, size: Size) -> Size:
        return self.size

    def _train_bytes(self, way: Pass, sizes: Sequence[Size], augments: Augments) -> Iterator[tuple[Tensor, Any]]:
        order = image_order(self.images, way.repeats, way.generator())[: sum(way.counts)]
        for chosen in order.split(list(way.counts))[way.first :]:
            yield self._batch(self.train_images, self.train, chosen[way.rank :: way.ranks])

    def _test_bytes(self, size: Size) -> Iterator[tuple[Tensor, Any]]:
        for chosen in torch.arange(len(self.test))[rank() :: ranks()].split(TEST_BATCH):
            yield self._batch(self.test_images, self.test, chosen)

    def _batch(self, images: Tensor, objects: Sequence[Boxes], chosen: Tensor) -> tuple[Tensor, Boxes]:
        return images[chosen.to(images.device)], Boxes.of([objects[i] for i in chosen.tolist()]).to(images.device)


def _of_objects(name: str, objects: Sequence[Boxes]) -> Contents:
    every = Boxes.of(objects)
    return of_arrays({f"{name} {what}": tensor for what, tensor in every._asdict().items()})


def _refuse_others(recipe: Recipe) -> None:
    """Raises ConfigError for what boxes cannot follow, what a detector's losses lack, and what cannot compile them."""
    follow, losses = "boxes cannot follow it; there are flips and color_jitter", "a detector has losses of its own"
    why: dict[str, str] = dict.fromkeys(("randaugment", "erasing", "mixup", "cutmix", "token_labels"), follow)
    why |= dict.fromkeys(("label_smoothing", "class_weights"), losses)
    why |= {"compile": "how a detector goes on depends on what it has found"}
    for key, reason in why.items():
        if value := getattr(recipe, key):
            raise ConfigError(reason, where=key, expected="0, none or false", found=f"{value}")

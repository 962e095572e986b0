"""Images and labels in batches: from memory where they fit, else decoded by worker processes."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar, cast

import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets import DatasetFolder

from ..errors import ConfigError
from ..machine.ranks import rank, ranks
from ..machine.timing import now
from ..parts.resizing import Size, resized
from ..schedule.mini_batch import step_sizes
from ..schedule.stages import Regularisation
from .augment import Augments, augmented, crop_and_flip, erased, image_order, rand_augment, seeded
from .contents import Contents, of_arrays, of_files
from .images import CentreCrops, MapCrops, RandomCrops, Sample
from .listed import Listed
from .models import crop_of
from .recipe import Recipe
from .tasks import Task, classification_of
from .token_labels.label_maps import LabelMaps, image_root

T = TypeVar("T")

IN_MEMORY = 64
"""Images up to this side (pixels) are decoded once and kept as bytes."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batch = tuple[Tensor, Tensor]
"""Images (N, 3, H, W) and their classes (N,), int64, on the device of the run."""

TrainBatch = tuple[Tensor, Tensor | MapCrops]
"""As `Batch`, but where mixup or cutmix are on, the labels are shares of classes (N, classes), float32, and with
token labelling, label maps."""

AS_THE_RECIPE_SAYS = Regularisation()

WHOLE = "whole"
"""The note of images that are resized, and not cropped."""

_OF_A_SUBSET = 2**31 - 1
"""Stands in for the epoch in the random numbers of a subset: no run gets so far."""


@dataclass(frozen=True)
class Pass:
    """One way through training images, the same whenever it is gone.

    Attributes:
        seed, epoch: decide the order, and every random number.
        sizes: height and width of the images of each step.
        counts: how many there are in each step.
        repeats: times an image comes in a row; 0 and 1 are once.
        resizing: how they are brought to their size, see `Method`.
        strength: shares of the recipe's RandAugment and erasing.
        first: the step to begin with.
        rank, ranks: this process takes every so-many-th image of each step, beginning with its own number.
    """

    seed: int
    epoch: int
    sizes: Sequence[Size]
    counts: Sequence[int]
    repeats: int = 1
    resizing: str = "bilinear"
    strength: Regularisation = AS_THE_RECIPE_SAYS
    first: int = 0
    rank: int = 0
    ranks: int = 1

    def generator(self) -> torch.Generator:
        """Random numbers of this pass."""
        # Seeds of neighbouring runs must not share epochs, hence the product with a large odd number.
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)


class Data(ABC):
    """A training set and a test set.

    Attributes:
        counts: how often each class is in the training set: images, or pixels, or objects.
        images: for training.
        steps: batches of the recipe's size in an epoch; the last, incomplete one is left out.
        task: what is learnt on it.
        teacher: name and checksum of what made the label maps; None without.
    """

    teacher: str | None = None
    classes: Sequence[str] = ()
    """Their names, where the source has any."""
    one_class: ClassVar[str] = "Put each class into a folder of its own: train/CLASS/IMAGE"
    """What to do where all is of one class."""

    def __init__(
        self, name: str, counts: Tensor, image_size: int, images: int, recipe: Recipe, task: Task | None = None
    ):
        """Without a task, each image has one class.

        Raises:
            ConfigError: the images do not fill a batch.
        """
        self.name, self.num_classes, self.image_size, self.recipe = name, len(counts), image_size, recipe
        self.counts, self.images, self.steps = counts, images, images // recipe.batch_size
        self.task = task or classification_of(recipe, counts)
        self.device = recipe.torch_device()
        self.mean, self.std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        mixes = recipe.mixup > 0 or recipe.cutmix > 0
        # The loss smooths the labels, mixed or not.
        self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=0, num_classes=len(counts)) if mixes else None
        if not self.steps:
            raise ConfigError(
                "fewer training images than one batch",
                where=recipe.data,
                expected=f"at least {recipe.batch_size}",
                found=f"{images}",
            )

    @cached_property
    def contents(self) -> Contents:
        """What the images are known by, when a run is gone on with; read once."""
        found = self._contents()
        return found | {"label maps": self.teacher} if self.teacher else found

    @abstractmethod
    def _contents(self) -> Contents:
        """Of the images."""

    @property
    def size(self) -> Size:
        """Height and width of the images where nothing else is asked for."""
        return self.image_size, self.image_size

    def step_sizes(self, batch_size: int) -> list[int]:
        """Images in each step of an epoch: at every batch size those of the recipe's steps, see `step_sizes`."""
        first = self.recipe.batch_size
        return step_sizes(self.steps * first, batch_size, first)

    def train_batches(
        self,
        seed: int,
        epoch: int,
        sizes: Size | Sequence[Size] | None = None,
        resizing: str = "bilinear",
        strength: Regularisation = AS_THE_RECIPE_SAYS,
        batch_size: int | None = None,
        first: int = 0,
    ) -> Iterator[TrainBatch]:
        """Shuffled, augmented, normalised batches, the same for the same arguments.

        With several sizes, batch k is batch k of an epoch wholly at `sizes[k]`. The images and their order are the same
        at every batch size, but for a few at the end (see `step_sizes`).

        Args:
            seed: of the run.
            epoch: counted from 0.
            sizes: height and width of the images, those of the current sub-network; or one for each of the epoch's
                steps, where another sub-network runs in each; None is the full resolution.
            resizing: how they are brought to it, see `Method`.
            strength: shares of the recipe's RandAugment and erasing.
            batch_size: images in a step; None is what the recipe says.
            first: the step to begin with.

        Raises:
            ConfigError: a number of sizes other than the epoch's steps.
        """
        counts = self.step_sizes(batch_size or self.recipe.batch_size)
        each = self._each_step(sizes, len(counts))
        repeats = self.recipe.repeated_augmentation
        return self._batches(Pass(seed, epoch, each, counts, repeats, resizing, strength, first, rank(), ranks()))

    def subset(self, count: int, seed: int, strength: Regularisation = AS_THE_RECIPE_SAYS) -> Subset:
        """A fixed random part of the training images, augmented in a fixed way, to compare networks on; of several
        ranks each takes its part of every batch.

        Args:
            count: of images, each of which comes once; those that do not fill a last batch are left out.
            seed: decides which images, their order and their augmentation.
            strength: shares of the recipe's RandAugment and erasing.

        Raises:
            ConfigError: there are fewer training images, or the subset does not fill a batch.
        """
        batch_size = self.recipe.batch_size
        if count > self.images:
            raise ConfigError(
                "a subset larger than the data", where=self.name, expected=f"at most {self.images}", found=f"{count}"
            )
        if count < batch_size:
            raise ConfigError(
                "a subset smaller than one batch", where=self.name, expected=f"at least {batch_size}", found=f"{count}"
            )
        return Subset(self, count // batch_size, seed, strength)

    def framing(self, side: int) -> dict[str, str]:
        """What a file must become to be tested at a size, as notes of an export: here the whole image is resized."""
        return {"crop": WHOLE, "interpolation": "bilinear"}

    def test_batches(self, size: Size | None = None) -> Iterator[Batch]:
        """All test images in order, normalised, their labels as classes; of several ranks each takes its part."""
        size = size or self.size
        for images, labels in self._test_bytes(size):
            yield resized(self._normalised(images), size, "bilinear"), labels

    def shown(self, side: int) -> str:
        """What of a test image is shown to a network that takes `side` pixels."""
        return f"whole test images at {side} pixels"

    def protocol(self) -> str:
        """How a network is tested, in words; figures of another protocol are not to be compared with these."""
        decays = ", ".join(f"{decay:g}" for decay in self.recipe.decays)
        average = f", {'the best' if ', ' in decays else 'the'} average of {decays}" if decays else ""
        return f"{self.shown(max(self.size))}{average}"

    def example(self, batch_size: int) -> Tensor:
        """An input of the right shape."""
        return torch.zeros(batch_size, 3, *self.size)

    @abstractmethod
    def _made_at(self, size: Size) -> Size:
        """The size at which images can be made where another one is asked for."""

    @abstractmethod
    def _train_bytes(self, way: Pass, sizes: Sequence[Size], augments: Augments) -> Iterator[TrainBatch]:
        """Augmented images, uint8, a batch for each step of the pass, at its size where they can be made so, else at
        their own."""

    @abstractmethod
    def _test_bytes(self, size: Size) -> Iterator[Batch]:
        """As `_train_bytes`, for the test images."""

    def _batches(self, way: Pass) -> Iterator[TrainBatch]:
        """The batches of a pass; see `train_batches`."""
        # Only a bilinear image can be made small to begin with.
        decoded = [self._made_at(size) if way.resizing == "bilinear" else self.size for size in way.sizes]
        magnitude, mean = self.recipe.randaugment * way.strength.randaugment, self.mean.flatten().tolist()
        augments = {size: rand_augment(magnitude, size, mean) for size in set(decoded)}
        batches = self._train_bytes(way, decoded, augments)
        for step, size in enumerate(way.sizes[way.first :], way.first):
            with seeded(way.seed, way.epoch, 0, step, *([way.rank] if way.rank else []), device=self.device):
                images, labels = next(batches)
                images = resized(self._normalised(images), size, way.resizing)
                images = erased(images, self.recipe.erasing * way.strength.erasing)
                if self.mixup:
                    images, labels = self.mixup(images, labels)
            yield images, labels

    def _each_step(self, sizes: Size | Sequence[Size] | None, steps: int) -> Sequence[Size]:
        """The size of each batch of an epoch."""
        if sizes is None or (sizes and isinstance(sizes[0], int)):
            return [cast(Size, sizes or self.size)] * steps
        if len(sizes) != steps:
            raise ConfigError("not one size for each step", expected=f"{steps}", found=f"{len(sizes)}")
        return cast("Sequence[Size]", sizes)

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (t.to(images.device).view(3, 1, 1) for t in (self.mean, self.std))
        return images.float().div_(255).sub_(mean).div_(std)


@dataclass(frozen=True)
class Subset(Iterable[TrainBatch]):
    """Batches at the full resolution, made anew, and bit for bit the same, whenever they are gone through.

    Random numbers outside stay as they are.

    Attributes:
        data: whose training images they are of.
        steps: batches.
        seed: see `Data.subset`.
        strength: see `Data.subset`.
    """

    data: Data
    steps: int
    seed: int
    strength: Regularisation

    def __iter__(self) -> Iterator[TrainBatch]:
        sizes = [self.data.size] * self.steps
        counts = [self.data.recipe.batch_size] * self.steps
        way = Pass(self.seed, _OF_A_SUBSET, sizes, counts, strength=self.strength, rank=rank(), ranks=ranks())
        return self.data._batches(way)


class MemoryData(Data):
    """Images kept as bytes on the device; augmentation on whole batches there."""

    def __init__(
        self, name: str, train: Batch, test: Batch, recipe: Recipe, crop: int, flip: bool, classes: Sequence[str] = ()
    ):
        """`crop` is the padding in pixels for random crops; `train` and `test` are uint8 images and labels.

        Raises:
            ConfigError: the recipe asks for token labelling.
        """
        if recipe.token_labels:
            raise ConfigError(
                "token labelling needs images that are decoded from files",
                where=recipe.data,
                expected=f"imagenet:FOLDER, or an image folder with images larger than {IN_MEMORY} pixels",
                todo="Leave out token_labels, or change the data",
            )
        device = recipe.torch_device()
        self.crop, self.flip = crop, flip
        self.train_images, self.train_labels = (t.to(device) for t in _subset(train, recipe.images))
        self.test_images, self.test_labels = (t.to(device) for t in _subset(test, recipe.test_images))
        num_classes = int(torch.cat([self.train_labels, self.test_labels]).max()) + 1
        counts = torch.bincount(self.train_labels.cpu(), minlength=num_classes)
        super().__init__(name, counts, self.train_images.shape[-1], len(self.train_labels), recipe)
        self.classes = list(classes)[:num_classes]
        scaled = self.train_images.float().div_(255)
        self.mean = scaled.mean((0, 2, 3))
        self.std = scaled.std((0, 2, 3)).clamp_min_(1 / 255)  # a channel may be constant

    def _contents(self) -> Contents:
        images = {"training images": self.train_images, "test images": self.test_images}
        return of_arrays(images | {"training labels": self.train_labels, "test labels": self.test_labels})

    def _made_at(self, size: Size) -> Size:
        return self.size

    def _train_bytes(self, way: Pass, sizes: Sequence[Size], augments: Augments) -> Iterator[Batch]:
        """Random crops after padding, and horizontal flips where they keep the meaning."""
        generator, augment = way.generator(), augments[self.size]
        order = image_order(self.images, way.repeats, generator)[: sum(way.counts)]
        for step, chosen in enumerate(order.to(self.device).split(list(way.counts))):
            images = crop_and_flip(self.train_images[chosen], self.crop, self.flip, generator)
            if step < way.first:  # its random numbers are drawn all the same
                continue
            images, labels = (t[way.rank :: way.ranks] for t in (images, self.train_labels[chosen]))
            yield augmented(images, augment) if augment else images, labels

    def _test_bytes(self, size: Size) -> Iterator[Batch]:
        """In batches of 500."""
        mine = slice(rank(), None, ranks())
        yield from zip(self.test_images[mine].split(500), self.test_labels[mine].split(500), strict=True)


class FileData(Data):
    """Images decoded when needed, at the size that is needed, by the processes of PyTorch's loader."""

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
        """A batch of images and targets."""
        return default_collate(items)  # pyright: ignore  (of pairs it makes a pair)

    def _made_at(self, size: Size) -> Size:
        return size

    @abstractmethod
    def _crops(self, way: Pass, augments: Augments) -> Dataset[tuple[Tensor, Any]]:
        """Augmented training images and their targets, asked for by (position in the epoch, index, size); the pass and
        the position decide the random numbers."""

    def _train_bytes(self, way: Pass, sizes: Sequence[Size], augments: Augments) -> Iterator[TrainBatch]:
        order = image_order(self.images, way.repeats, way.generator())
        items = enumerate(order.tolist())
        batches = [
            [(position, index, size) for position, index in itertools.islice(items, count)][way.rank :: way.ranks]
            for size, count in zip(sizes, way.counts, strict=True)
        ]
        yield from self._load(self._crops(way, augments), batch_sampler=batches[way.first :])

    def _load(self, dataset: Dataset[tuple[Tensor, Any]], **options: Any) -> Iterator[tuple[Tensor, Any]]:
        loader = DataLoader(
            dataset,
            num_workers=self.recipe.workers,
            collate_fn=self.collate,
            pin_memory=self.device.type == "cuda",
            **options,
        )
        for images, labels in in_one_line(loader):
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


class StreamData(FileData):
    """Images in a folder for each class."""

    def __init__(self, name: str, train: DatasetFolder | Listed, test: DatasetFolder | Listed, recipe: Recipe):
        """Keep paths and labels.

        Raises:
            ConfigError: the recipe's label maps are not those of the training images, which must be in folders.
        """
        self._packed = [part.contents for part in (train, test) if isinstance(part, Listed) and part.contents]
        if recipe.token_labels and isinstance(train, Listed):
            raise ConfigError(
                "label maps are of images in class folders", where=recipe.data, todo="Leave out token_labels"
            )
        chosen = chosen_of(len(train), recipe.images)
        self.train: list[Sample] = [train.samples[i] for i in chosen]
        self.test: list[Sample] = [test.samples[i] for i in chosen_of(len(test), recipe.test_images)]
        folders = None if isinstance(train, Listed) or recipe.token_labels is None else train
        self.maps = LabelMaps.open(recipe.token_labels).of(folders, chosen) if folders and recipe.token_labels else None
        self.teacher = self.maps.maps.about.teacher if self.maps else None
        self._roots = [part.root if isinstance(part, Listed) else image_root(part) for part in (train, test)]
        counts = torch.bincount(torch.tensor([label for _, label in self.train]), minlength=len(train.classes))
        super().__init__(name, counts, recipe.image_size or 224, len(self.train), recipe)
        # ImageNet's classes have several names each.
        self.classes = [each if isinstance(each, str) else ", ".join(each) for each in train.classes]

    def _contents(self) -> Contents:
        if self._packed:
            return {**self._packed[0], **self._packed[1]}
        train, test = self._roots
        return of_files("the training files", train, self.train) | of_files("the test files", test, self.test)

    def _crops(self, way: Pass, augments: Augments) -> RandomCrops:
        """Random resized crops and horizontal flips."""
        return RandomCrops(self.train, augments, (way.seed, way.epoch, 1), self.maps)

    def _test_bytes(self, size: Size) -> Iterator[Batch]:
        """Centre crops."""
        crops = CentreCrops(self.test[rank() :: ranks()], size, *crop_of(self.recipe.model, max(size)))
        yield from self._load(crops, batch_size=self.recipe.batch_size)

    def framing(self, side: int) -> dict[str, str]:
        """A centre crop, see `crop_of`."""
        crop = crop_of(self.recipe.model, side)
        return {"crop": f"{crop.share}", "interpolation": crop.interpolation}

    def shown(self, side: int) -> str:
        """By the model's own configuration, see `crop_of`."""
        crop = crop_of(self.recipe.model, side)
        return f"the centre {crop.share:g} of test images at {side} pixels, {crop.interpolation}"


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


def terminal() -> bool:
    """Whether someone watches; a progress bar in a file is only noise."""
    from rich.console import Console

    return Console().is_terminal


def loader_throughput(data: Data, size: Size | None, batches: int, resizing: str = "bilinear") -> float:
    """Training images a second that the data layer alone delivers at a size, resized as a method does.

    The clock starts when the first batch is there. Workers have begun others by then (two each), so `batches`
    should be many times their number.
    """
    stream = itertools.chain.from_iterable(data.train_batches(0, epoch, size, resizing) for epoch in itertools.count())
    next(stream)
    start = now(data.device)
    images = sum(len(images) for images, _ in itertools.islice(stream, batches))
    return images / (now(data.device) - start)


def _subset(batch: Batch, count: int | None) -> Batch:
    chosen = chosen_of(len(batch[0]), count)
    return batch[0][chosen], batch[1][chosen]


def chosen_of(total: int, count: int | None) -> list[int]:
    """All indices, or `count` of them, the same in every run."""
    if count is None or count >= total:
        return list(range(total))
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort().values.tolist()

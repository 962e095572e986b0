"""CIFAR-10 in the device's memory: decoded once, shuffled, cropped and flipped there."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg


@dataclass
class Images:
    """CIFAR-10 on the device: bytes, and classes."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor

    def to(self, device: torch.device) -> Images:
        """All of it there."""
        return Images(*(tensor.to(device) for tensor in vars(self).values()))

    def first(self, count: int) -> Images:
        """So many training images, the same in every run: chosen by chance, since files are in the order of classes."""
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:count]
        chosen = chosen.to(self.train.device)
        return Images(self.train[chosen], self.train_labels[chosen], self.test, self.test_labels)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the JPEG files of a folder, or of a tar file of one."""
    if path.is_dir():
        for file in sorted(path.glob("*/*/*.jpg")):
            yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() and member.name.endswith(".jpg") else None
            if content is not None:
                yield member.name, content.read()


def load(path: Path) -> Images:
    """Images from a folder or tar file of `train/CLASS/NAME.jpg` and `test/CLASS/NAME.jpg`, or a file of `prepare`."""
    if path.suffix == ".pt":
        return Images(**torch.load(path, weights_only=True))
    parts: dict[str, list[tuple[torch.Tensor, str]]] = {"train": [], "test": []}
    for name, content in _files(path):
        part, label = name.split("/")[-3:-1]
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        parts[part].append((decode_jpeg(encoded, ImageReadMode.RGB), label))
    classes = sorted({label for _, label in parts["train"]})
    tensors = []
    for pairs in parts.values():
        tensors += [torch.stack([image for image, _ in pairs]), torch.tensor([classes.index(at) for _, at in pairs])]
    return Images(*tensors)


def prepare(source: Path, target: Path) -> None:
    """Decode once, into a file that is read in a second."""
    images = load(source)
    torch.save(vars(images), target)
    print(f"{len(images.train)} training and {len(images.test)} test images in {target}")


def made_up(seed: int) -> Images:
    """A few images of noise around ten patterns, for a toy run."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(256, (10, 3, 32, 32), generator=generator)

    def some(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % 10
        noise = torch.randint(256, (count, 3, 32, 32), generator=generator)
        return (patterns[labels] + noise).div(2).to(torch.uint8), labels

    return Images(*some(64), *some(20))


class Loader:
    """Shuffled, cropped and flipped on the device, a batch at a time."""

    def __init__(self, images: Images, batch: int, seed: int):
        self.images, self.batch, self.device = images, batch, images.train.device
        scaled = images.train[:10_000].float().div(255)
        self.mean = scaled.mean((0, 2, 3)).view(3, 1, 1)
        self.std = scaled.std((0, 2, 3)).view(3, 1, 1)
        self.padded = F.pad(images.train, (4,) * 4)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.steps = len(images.train) // batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.padded), device=self.device, generator=self.generator)
        place = torch.arange(32, device=self.device)
        for chosen in order[: self.steps * self.batch].split(self.batch):
            top, left, flip = (
                torch.randint(most, (self.batch, 1), device=self.device, generator=self.generator) for most in (9, 9, 2)
            )
            rows, columns = top + place, left + torch.where(flip == 1, 31 - place, place)
            index = (rows[:, :, None] * 40 + columns[:, None, :]).view(self.batch, 1, -1).expand(-1, 3, -1)
            images = self.padded[chosen].flatten(2).gather(2, index).view(-1, 3, 32, 32)
            yield self.normalised(images), self.images.train_labels[chosen]

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """As the network wants them."""
        scaled = images.float().div_(255).sub_(self.mean).div_(self.std)
        return scaled.contiguous(memory_format=torch.channels_last)


def accuracy(model: nn.Module, loader: Loader) -> float:
    """Percent of the test images."""
    model.eval()
    right = 0
    with torch.inference_mode(), torch.autocast(loader.device.type, torch.bfloat16):
        pairs = zip(loader.images.test.split(1000), loader.images.test_labels.split(1000), strict=True)
        for images, labels in pairs:
            right += int((model(loader.normalised(images)).argmax(1) == labels).sum())
    return 100 * right / len(loader.images.test)

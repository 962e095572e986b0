"""Label maps on disk: what a teacher sees at each place of each image, one small file an image."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torchvision.datasets import DatasetFolder

from ...errors import ConfigError, first_line
from ...machine.reading import MALFORMED, parse_json, read_text, whole, word, words

ABOUT = "label_maps.json"

KINDS = (torch.float16, torch.uint16)
"""Of the scores and of the classes."""

MOST_CLASSES = 2**16

MOST_PLACES = 2**22
"""Numbers in a map."""


@dataclass(frozen=True)
class About:
    """What all maps of a folder have in common.

    Attributes:
        teacher: name and checksum of the weights that made them.
        classes: names of the classes in the order of their indices.
        top_k: classes kept at each place.
        grid: rows and columns of a map, which covers the whole image.
    """

    teacher: str
    classes: tuple[str, ...]
    top_k: int
    grid: tuple[int, int]


class LabelMaps:
    """A folder of label maps: `CLASS/IMAGE.safetensors` for the image `CLASS/IMAGE`, and `label_maps.json`.

    A map is the `top_k` highest scores (float16) and their classes (uint16), both (top_k, rows, columns). The
    classes that are left out score 0 (see `teacher.top_scores`). With 5 classes on 18 x 18 places that is 6.6 kB,
    8.5 GB for ImageNet.
    """

    def __init__(self, folder: Path, about: About):
        self.folder, self.about = folder, about
        rows, columns = about.grid
        empty = torch.zeros(about.top_k, rows, columns)
        self._bytes = len(_packed(empty, empty))  # of every map alike, so that a look at the folder finds torn files

    @classmethod
    def open(cls, folder: Path) -> LabelMaps:
        """The maps of a folder.

        Raises:
            ConfigError: the folder holds no label maps.
        """
        path = folder / ABOUT
        try:
            about = parse_json(read_text(path))
            classes = tuple(words(about["classes"]))
            rows, columns = (whole(side, 1, MOST_PLACES) for side in about["grid"])
            top_k = whole(about["top_k"], 1, len(classes))
            if len(classes) > MOST_CLASSES or top_k * rows * columns > MOST_PLACES:
                raise ValueError(f"{len(classes):,} classes, maps of {top_k} x {rows} x {columns}")
            return cls(folder, About(word(about["teacher"]), classes, top_k, (rows, columns)))
        except (OSError, *MALFORMED) as error:
            raise ConfigError(
                f"no label maps here ({first_line(error)})", where=str(path), todo="Make them: morphogen label-maps"
            ) from error

    @classmethod
    def create(cls, folder: Path, about: About) -> LabelMaps:
        """A folder to write to; one that was begun is gone on with.

        Raises:
            ConfigError: it holds other maps, or cannot be written.
        """
        if (folder / ABOUT).exists():
            maps = cls.open(folder)
            if maps.about != about:
                key = next(key for key, value in asdict(about).items() if getattr(maps.about, key) != value)
                raise ConfigError(
                    f"the folder holds maps of another {key}",
                    where=str(folder),
                    expected=_short(getattr(about, key)),
                    found=_short(getattr(maps.about, key)),
                    todo="Choose another folder",
                )
            return maps
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / ABOUT, json.dumps(asdict(about)).encode())
        except OSError as error:
            raise ConfigError(f"cannot write label maps there ({first_line(error)})", where=str(folder)) from error
        return cls(folder, about)

    def missing(self, names: list[str]) -> list[int]:
        """Positions of the images that have no map, or one that is not whole."""
        sizes: dict[str, dict[str, int]] = {}
        missing = []
        for position, name in enumerate(names):
            parent, _, file = f"{name}.safetensors".rpartition("/")
            if parent not in sizes:  # one listing a folder: far quicker than asking for every file
                folder = self.folder / parent
                sizes[parent] = {e.name: e.stat().st_size for e in os.scandir(folder)} if folder.is_dir() else {}
            if sizes[parent].get(file) != self._bytes:
                missing.append(position)
        return missing

    def of(self, dataset: DatasetFolder, chosen: Sequence[int]) -> ImageMaps:
        """The maps of the chosen images of an image folder.

        Raises:
            ConfigError: the maps are of other classes, or some are missing or not whole; said now, since it would
                else stop an epoch halfway.
        """
        expected, found = class_names(dataset), self.about.classes
        if expected != found:
            raise ConfigError(
                "label maps of other classes than the images'",
                where=str(self.folder),
                expected=_short(expected),
                found=_short(found),
                todo="Make them with a teacher of these classes: morphogen label-maps",
            )
        every = image_names(dataset)
        names = [every[i] for i in chosen]
        missing = self.missing(names)
        if missing:
            raise ConfigError(
                f"label maps are missing or cut short for {len(missing)} of {len(names)} images",
                where=str(self.folder),
                found=f"none for {names[missing[0]]}",
                todo="Run morphogen label-maps again; it makes only those",
            )
        return ImageMaps(self, names)

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """Scores (top_k, rows, columns), float16, and classes, int32, of an image.

        Raises:
            ConfigError: there is no such map, or it is cut short, or does not belong to this folder.
        """
        path = self.folder / f"{name}.safetensors"
        try:
            if os.path.getsize(path) > 2 * self._bytes:
                raise ValueError(f"{os.path.getsize(path)} bytes, where maps have {self._bytes}")
            content = load(path.read_bytes())
            scores, classes = content["scores"], content["classes"]
        except (OSError, SafetensorError, RuntimeError, *MALFORMED) as error:
            raise ConfigError(
                f"cannot read the label map ({first_line(error)})",
                where=str(path),
                todo="Run morphogen label-maps again; it makes what is missing or cut short",
            ) from error
        about = self.about
        shape, kinds = (about.top_k, *about.grid), (scores.dtype, classes.dtype)
        expected, found = (shape, shape, *KINDS), (tuple(scores.shape), tuple(classes.shape), *kinds)
        highest = int(classes.int().max()) if found == expected else -1
        if found != expected or highest >= len(about.classes) or not bool(torch.isfinite(scores).all()):
            raise ConfigError(
                "a label map of another kind than the folder's",
                where=str(path),
                expected=f"top_k, rows and columns {shape}, finite scores, classes below {len(about.classes)}",
                found=f"{found[0]}, {kinds[0]} and {kinds[1]}, classes up to {highest}",
                todo="Remove it and run morphogen label-maps again",
            )
        return scores, classes.to(torch.int32)  # PyTorch cannot index by uint16

    def write(self, name: str, scores: Tensor, classes: Tensor) -> None:
        """Keep the map of an image: (top_k, rows, columns) each; it is there whole or not at all."""
        path = self.folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, _packed(scores, classes))


@dataclass(frozen=True)
class ImageMaps:
    """The label maps of some images, asked for by the image's position among them; see `LabelMaps.read`."""

    maps: LabelMaps
    names: Sequence[str]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.maps.read(self.names[index])


def image_names(dataset: DatasetFolder) -> list[str]:
    """Each image's path below its class folders, `CLASS/IMAGE`, whatever the machine."""
    root = image_root(dataset)
    return [Path(os.path.relpath(path, root)).as_posix() for path, _ in dataset.samples]


def image_root(dataset: DatasetFolder) -> str:
    """The folder of its class folders."""
    return str(getattr(dataset, "split_folder", dataset.root))  # torchvision's ImageNet calls the folder above it root


def class_names(dataset: DatasetFolder) -> tuple[str, ...]:
    """The folders' names in the order of the class indices."""
    return tuple(getattr(dataset, "wnids", dataset.classes))  # torchvision's ImageNet replaces them by words


def _packed(scores: Tensor, classes: Tensor) -> bytes:
    scores, classes = scores.to("cpu", torch.float16), classes.to("cpu", torch.uint16)
    return save({"scores": scores.contiguous(), "classes": classes.contiguous()})


def _write(path: Path, content: bytes) -> None:
    aside = path.with_name(f"{path.name}.part")
    aside.write_bytes(content)
    os.replace(aside, path)


def _short(value: object) -> str:
    """For a message: a thousand classes are told by their number and the first."""
    return f"{len(value)}, beginning with {value[0]}" if isinstance(value, tuple) and len(value) > 2 else f"{value}"

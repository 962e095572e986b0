"""Images that no folder of classes holds: listed in a CSV file, in a Hugging Face data set, in webdataset's shards.

Each is read by its own library, and nothing that a file names is run.
"""

from __future__ import annotations

import csv
import glob
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from ..errors import ConfigError, first_line
from .contents import Contents, of_files

TESTS = ("val", "valid", "validation", "test")
"""What the part for testing may be called; the first that is there is taken."""

HELD_OUT = 5
"""Where a CSV file has no column `split`, every so-many-th image of a class is for testing."""


@dataclass(frozen=True)
class Packed:
    """One image inside a larger file."""

    read: Callable[[int], bytes]
    index: int
    name: str

    def __str__(self) -> str:
        return self.name

    def open(self) -> BytesIO:
        """Its bytes, as a file."""
        return BytesIO(self.read(self.index))


@dataclass(frozen=True)
class Listed:
    """Images for training, or for testing.

    Attributes:
        samples: path, or place, and class of each.
        classes: names, in the order of their numbers.
        root: the folder or the data set that they are of.
        contents: what they are known by, where they are no files of their own.
    """

    samples: list[tuple[Any, int]]
    classes: list[str]
    root: str
    contents: Contents | None = None

    @property
    def targets(self) -> list[int]:
        """Their classes."""
        return [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)


def of_csv(path: Path) -> tuple[Listed, Listed]:
    """Training and test images of a CSV file with the columns `path`, `label` and, if given, `split` (train and val, or
    test). Paths are absolute, or from the file's folder. Without `split` every fifth image of a class is for testing.

    Raises:
        ConfigError: it cannot be read, lacks a column, or names images that are not there.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"cannot read it ({first_line(error)})", where=str(path), expected="a CSV file") from error
    if not {"path", "label"} <= set(columns):
        raise ConfigError(
            "a column is missing", where=str(path), expected="path, label and perhaps split", found=", ".join(columns)
        )
    triples: list[tuple[str, str, str]] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 2):
        name, label = row["path"], row["label"]
        if not name or not label:
            raise ConfigError(f"line {number} has no path, or no label", where=str(path))
        if "split" in columns:
            split = row["split"] or ""
        else:
            split = "train" if seen.get(label, 0) % HELD_OUT != HELD_OUT - 1 else "test"
            seen[label] = seen.get(label, 0) + 1
        image = os.path.join(path.parent, name)
        if not os.path.exists(image):
            raise ConfigError(f"line {number} names an image that is not there", where=str(path), found=name)
        triples.append((image, label, split))
    if "split" not in columns:
        warnings.warn(f"{path} has no column split: every {HELD_OUT}th image of a class is for testing", stacklevel=2)
    return _parts(triples, str(path.parent), str(path))


def of_hugging_face(name: str) -> tuple[Listed, Listed]:
    """Training and test images of a data set that `datasets` knows, or of a folder of one.

    Raises:
        ConfigError: `datasets` is not installed, it cannot read this, or there are no images with labels in it.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]  (optional, and large)
    except ModuleNotFoundError:
        raise _missing("datasets", name) from None
    try:
        saved = Path(name, "dataset_dict.json").exists()
        found: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # whatever the library stumbles over
        raise ConfigError(f"datasets cannot read it ({first_line(error)})", where=f"hf:{name}") from error
    test = next((split for split in TESTS if split in found), None)
    if "train" not in found or test is None:
        raise ConfigError(
            "a part is missing", where=f"hf:{name}", expected="train, and validation or test", found=", ".join(found)
        )
    features = found["train"].features
    image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise ConfigError(
            "no images with classes",
            where=f"hf:{name}",
            expected="a column of images, and one of class labels",
            found=", ".join(features),
        )
    classes = list(features[label].names)
    listed = []
    for split in ("train", test):
        rows = found[split].cast_column(image, datasets.Image(decode=False))
        samples = [
            (Packed(_Rows(rows, image), index, f"hf:{name}, {split}, image {index}"), int(number))
            for index, number in enumerate(rows[label])
        ]
        listed.append(Listed(samples, classes, name, {f"fingerprint of {split}": str(found[split]._fingerprint)}))
    return listed[0], listed[1]


@dataclass(frozen=True)
class _Rows:
    """The bytes of each image of a data set."""

    rows: Any
    column: str

    def __call__(self, index: int) -> bytes:
        image = self.rows[index][self.column]
        return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]


def of_shards(pattern: str) -> tuple[Listed, Listed]:
    """Training and test images of webdataset's tar files, such as `/data/train-*.tar`, in which each image has a class,
    `0001.jpg` and `0001.cls`. The test is the same pattern with `val` or `test` in place of `train`. The images' files
    stay in memory, as they are.

    Raises:
        ConfigError: `webdataset` is not installed, there are no such files, or images without a class in them.
    """
    try:
        import webdataset
    except ModuleNotFoundError:
        raise _missing("webdataset", pattern) from None
    folder, name = os.path.split(pattern)
    shards = {
        split: sorted(glob.glob(os.path.join(folder, name.replace("train", split)))) for split in ("train", *TESTS)
    }
    test = next((split for split in TESTS if shards[split]), None)
    if "train" not in name or not shards["train"] or test is None:
        raise ConfigError(
            "no such shards",
            where=f"wds:{pattern}",
            expected="tar files whose names have train in them, and others with val or test in its place",
            found=", ".join(os.path.basename(path) for split in shards.values() for path in split),
        )
    triples: list[tuple[Any, str, str]] = []
    for split in ("train", test):
        files = [os.path.abspath(path) for path in shards[split]]  # and not what webdataset would run or fetch
        images: list[bytes] = []
        try:
            opened: Any = webdataset.WebDataset(files, shardshuffle=False)  # pyright: ignore
            for sample in opened:
                image = next((sample[key] for key in ("jpg", "jpeg", "png", "webp") if key in sample), None)
                if image is None or "cls" not in sample:
                    raise ValueError(f"{sample['__key__']} is no image with a file .cls beside it")
                place = Packed(images.__getitem__, len(images), f"{sample['__url__']}, {sample['__key__']}")
                triples.append((place, sample["cls"].decode().strip(), split))
                images.append(image)
        except Exception as error:  # whatever the library stumbles over
            raise ConfigError(f"webdataset cannot read it ({first_line(error)})", where=f"wds:{pattern}") from error
    contents = [
        of_files(f"the shards of {split}", folder, [(path, 0) for path in shards[split]]) for split in ("train", test)
    ]
    return _parts(triples, folder, f"wds:{pattern}", contents)


def _parts(
    triples: Sequence[tuple[Any, str, str]], root: str, where: str, contents: Sequence[Contents | None] = (None, None)
) -> tuple[Listed, Listed]:
    """Image, label and split of each as training and test images."""
    splits = dict.fromkeys(split for _, _, split in triples)
    test = next((split for split in TESTS if split in splits), None)
    unknown = [split for split in splits if split not in ("train", *TESTS)]
    if "train" not in splits or test is None or unknown:
        raise ConfigError(
            "images for training and for testing are needed",
            where=where,
            expected="each image in train, or in val or test",
            found=", ".join(map(repr, splits)) or "no image",
        )
    classes = _ordered({label for _, label, split in triples if split == "train"})
    numbers = {name: number for number, name in enumerate(classes)}
    if other := sorted({label for _, label, split in triples if split == test} - numbers.keys()):
        raise ConfigError("a class is tested that is not trained", where=where, found=", ".join(other[:10]))
    parts = [[(image, numbers[label]) for image, label, split in triples if split == name] for name in ("train", test)]
    return Listed(parts[0], classes, root, contents[0]), Listed(parts[1], classes, root, contents[1])


def _ordered(labels: Iterable[str]) -> list[str]:
    """By number where all are numbers, else by name."""
    return sorted(labels, key=lambda label: (0, int(label), "") if label.isdecimal() else (1, 0, label))


def _missing(package: str, where: str) -> ConfigError:
    return ConfigError(f"this needs '{package}'", where=where, todo="pip install 'morphogen[data]'")

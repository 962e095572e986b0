"""What a data set is known by: files by names, sizes, dates and some of their bytes, arrays by a hash.

A set that was copied has other dates. It is the same one where names, sizes and the bytes looked at are the same.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import torch

from ..errors import CheckpointError, ConfigError, first_line

Contents = dict[str, str]
"""Of each part of a data set, such as `sizes of the training files`."""

LOOKED_AT = 512
"""Files whose bytes are hashed, spread evenly over all."""
AT_ONCE = 16
"""Threads that ask for sizes: on a network file system the wait is long, and the work none."""
DATES = "dates of"


def of_arrays(arrays: Mapping[str, torch.Tensor]) -> Contents:
    """Of tensors in memory, by name."""
    return {
        name: f"{tuple(array.shape)} {_hash([array.cpu().contiguous().numpy().data])}" for name, array in arrays.items()
    }


def of_files(what: str, root: str, samples: Sequence[tuple[str, int]]) -> Contents:
    """Of image files with their classes, by their names below `root`; a second or two for a million.

    Raises:
        ConfigError: one of them is gone.
    """
    paths = [path for path, _ in samples]
    begin = len(os.path.join(root, ""))
    names = (f"{path[begin:]}\0{label}\0".encode() for path, label in samples)
    pieces = [paths[first : first + 4096] for first in range(0, len(paths), 4096)]
    step = max(1, len(paths) / LOOKED_AT)
    chosen = [paths[int(step * i)] for i in range(min(LOOKED_AT, len(paths)))]
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            stats = list(chain.from_iterable(pool.map(_stats, pieces)))
            sample = _hash(pool.map(_digest, chosen))
    except OSError as error:
        raise ConfigError(f"a file of the data is gone ({first_line(error)})", where=root) from error
    return {
        f"names of {what}": f"{len(paths)} {_hash(names)}",
        f"sizes of {what}": _hash(f"{size} ".encode() for size, _ in stats),
        f"{DATES} {what}": _hash(f"{date} ".encode() for _, date in stats),
        f"bytes of {len(chosen)} of {what}": sample,
    }


def compare_contents(theirs: Contents, ours: Contents) -> None:
    """Warn where a run's data has other dates than when it was begun, and is else the same.

    Raises:
        CheckpointError: it is other data.
    """
    different = [key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)]
    other = [key for key in different if not key.startswith(DATES)]
    if other:
        raise CheckpointError(
            "the data are not those that the run was started with",
            where="data",
            expected="the same names, sizes and contents, wherever they lie",
            found=f"other {' and other '.join(other)}",
            todo="Give it its own data, or start over, with another --output or --overwrite",
        )
    if different:
        warnings.warn(
            "the images have other dates than when the run was started; their names, their sizes and "
            f"the bytes of {LOOKED_AT} files of each kind (or of all) are the same, so the run resumes",
            stacklevel=2,
        )


def known_as(contents: Contents) -> str:
    """One word for all but the dates."""
    return _hash(f"{key} {value}".encode() for key, value in sorted(contents.items()) if not key.startswith(DATES))


def _stats(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Sizes and dates."""
    return [(found.st_size, found.st_mtime_ns) for found in map(os.stat, paths)]


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _hash(pieces: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()[:32]

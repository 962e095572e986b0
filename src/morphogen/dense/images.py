"""Which of a call's inputs are images: those whose resolution changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ..errors import TraceError

Images = str | int | Iterable[str | int] | None
"""Names or positions of the arguments that are images; None for those found by their sizes."""

Path = tuple[Any, ...]
"""The position or name of an argument, and the keys that lead into it."""

LEAST = 4
"""Pixels on a side from which on a map beside an image can be one of its grid."""


def inputs_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Path, torch.Tensor]]:
    """All tensors of a call, those in lists and dictionaries included."""
    yield from _tensors({**dict(enumerate(args)), **kwargs}, ())


def _tensors(value: Any, path: Path) -> Iterator[tuple[Path, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, (dict, list, tuple)):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(each, (*path, key))


def exchanged(value: Any, new: Mapping[Path, torch.Tensor], path: Path = ()) -> Any:
    """Arguments, by position or name, with other tensors in the places of some."""
    if isinstance(value, torch.Tensor):
        return new.get(path, value)
    if isinstance(value, dict):
        return {key: exchanged(each, new, (*path, key)) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(exchanged(each, new, (*path, i)) for i, each in enumerate(value))
    return value


def is_map(tensor: torch.Tensor) -> bool:
    """Whether a tensor may be images (N, C, H, W), or video or volumes (N, C, D, H, W), whose D stays."""
    return tensor.ndim in (4, 5) and tensor.is_floating_point()


def find_images(args: tuple[Any, ...], kwargs: Mapping[str, Any], asked: Images) -> dict[Path, tuple[int, int]]:
    """The images of a call and their height and width, the largest first.

    They are the largest map and those beside it at a whole fraction of its size (a guide), unless the user says.

    Raises:
        TraceError: what the user named is no map.
    """
    maps = {path: (t.shape[-2], t.shape[-1]) for path, t in inputs_in(args, kwargs) if is_map(t)}
    if asked is not None:
        names = [asked] if isinstance(asked, (str, int)) else list(asked)
        for name in names:
            if not any(path[0] == name for path in maps):
                raise TraceError(
                    "no images there",
                    where=f"images={name!r}",
                    expected="an argument with floating-point images (N, C, H, W) or volumes (N, C, D, H, W): "
                    + (", ".join(repr(path[0]) for path in maps) or "there is none"),
                )
        maps = {path: size for path, size in maps.items() if path[0] in names}
    ordered = dict(sorted(maps.items(), key=lambda pair: -pair[1][0] * pair[1][1]))
    if asked is not None or not ordered:
        return ordered
    height, width = next(iter(ordered.values()))
    return {
        path: (h, w)
        for path, (h, w) in ordered.items()
        if (h, w) == (height, width) or (min(h, w) >= LEAST and height % h == 0 and height // h * w == width)
    }

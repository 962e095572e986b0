"""Position embeddings and relative-position tables at another token grid."""

from __future__ import annotations

from math import isqrt

import torch
from torch.nn import functional as F

from ..errors import MorphError

Shape = tuple[int, ...]
MOST_PREFIX = 16
"""Class, distillation and register tokens that may stand beside the grid on one axis."""


def resample(tensor: torch.Tensor, shape: Shape, *, name: str, ratio: float, smooth: bool = True) -> torch.Tensor:
    """A tensor whose grid axes are brought to another size; all other axes stay.

    The grid is two neighbouring axes (..., h, w, ...), or one axis of h x w positions with other tokens
    before it (class, registers: carried over) or behind it (as in BEiT's tables).

    Args:
        tensor: with one or two axes of another size than `shape`.
        shape: the size it is to have.
        name: of the tensor, for messages.
        ratio: height by width of the input, for grids that are not square.
        smooth: bicubic and antialiased, for weights; otherwise bilinear, which keeps second moments positive.

    Raises:
        MorphError: the axes that change are no grid.
    """
    changed = [i for i, (a, b) in enumerate(zip(tensor.shape, shape, strict=True)) if a != b]
    if len(changed) == 2 and changed[1] == changed[0] + 1:
        first = changed[0]
        return _resize(tensor, first, (shape[first], shape[first + 1]), smooth)
    if len(changed) == 1:
        (axis,) = changed
        for extra in range(MOST_PREFIX + 1):
            old, new = _grid(tensor.shape[axis] - extra, ratio), _grid(shape[axis] - extra, ratio)
            if old and new:
                # A relative-position table (2 h - 1)(2 w - 1) keeps its extra entries at the end.
                at_end = extra > 0 and old[0] % 2 == 1 and "relative_position" in name
                start = 0 if at_end else extra
                grid = tensor.narrow(axis, start, old[0] * old[1]).unflatten(axis, old)
                grid = _resize(grid, axis, new, smooth).flatten(axis, axis + 1)
                others = tensor.narrow(axis, old[0] * old[1] if at_end else 0, extra)
                return torch.cat([grid, others] if at_end else [others, grid], axis)
    raise MorphError(
        "it follows the resolution, but its axes are no grid",
        where=name,
        expected="height and width, or tokens of a grid",
        found=f"{tuple(tensor.shape)} to {shape}",
        todo="Keep the resolution of this model as it is",
    )


def _grid(positions: int, ratio: float) -> tuple[int, int] | None:
    """Height and width of so many positions at an aspect ratio; None where there are none."""
    if positions < 1:
        return None
    if ratio == 1:
        side = isqrt(positions)
        return (side, side) if side * side == positions else None
    pairs = [(h, positions // h) for h in range(1, positions + 1) if positions % h == 0]
    return next((pair for pair in pairs if abs(pair[0] / pair[1] - ratio) < 1e-6), None)


def _resize(tensor: torch.Tensor, axis: int, size: tuple[int, int], smooth: bool) -> torch.Tensor:
    moved = tensor.movedim((axis, axis + 1), (-2, -1))
    flat = moved.reshape(1, -1, *moved.shape[-2:]).float()
    if smooth:
        sized = F.interpolate(flat, size, mode="bicubic", antialias=True, align_corners=False)
    else:
        sized = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    return sized.to(tensor.dtype).view(*moved.shape[:-2], *size).movedim((-2, -1), (axis, axis + 1)).contiguous()

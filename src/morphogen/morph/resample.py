"""Position embeddings and relative-position tables at another token grid."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional as F

from ..errors import MorphError

Shape = tuple[int, ...]
MOST_PREFIX = 16
"""Class, distillation and register tokens that may stand beside the grid on one axis."""


@dataclass(frozen=True)
class Regrid:
    """A change of the input's resolution: height and width in pixels, before and after."""

    before: tuple[int, int]
    after: tuple[int, int]

    def misfit(self, old: int, new: int, side: int) -> float:
        """How far `new` positions along one side of the image (0: height) are from what `old` would become.

        A relative-position table has 2 n - 1 for n.
        """
        ratio = self.after[side] / self.before[side]
        plain = abs(new - old * ratio)
        return min(plain, abs((new + 1) / 2 - (old + 1) / 2 * ratio)) if old % 2 and new % 2 else plain

    def grids(self, old: int, new: int) -> tuple[tuple[int, int], tuple[int, int], float] | None:
        """Height and width of so many positions before and after, and their misfit; None where they are no grid."""
        before, after = _grid(old, self.before), _grid(new, self.after)
        if before is None or after is None:
            return None
        return before, after, sum(self.misfit(before[side], after[side], side) for side in (0, 1))


def resample(tensor: torch.Tensor, shape: Shape, change: Regrid, *, name: str, smooth: bool = True) -> torch.Tensor:
    """A tensor whose grid axes are brought to another size; all other axes stay.

    The grid is two neighbouring axes (..., h, w, ...); or one axis of h x w positions with other tokens before it
    (class, registers: carried over) or behind it (as in BEiT's tables); or one axis along one side of the image.

    Args:
        tensor: with one or two axes of another size than `shape`.
        shape: the size it is to have.
        change: of the resolution.
        name: of the tensor, for messages.
        smooth: bicubic and antialiased, for weights; otherwise bilinear, which keeps second moments positive.

    Raises:
        MorphError: the axes that change are no grid.
    """
    changed = [i for i, (a, b) in enumerate(zip(tensor.shape, shape, strict=True)) if a != b]
    if len(changed) == 2 and all(b == a + 1 for a, b in pairwise(changed)):
        first = changed[0]
        return _resize(tensor, first, (shape[first], shape[first + 1]), smooth)
    if len(changed) == 1:
        (axis,) = changed
        old, new = tensor.shape[axis], shape[axis]
        row = min(change.misfit(old, new, side) for side in (0, 1))
        found = [(extra, g) for extra in range(MOST_PREFIX + 1) if (g := change.grids(old - extra, new - extra))]
        # Other tokens beside the grid are a guess, which has to fit; a bare grid may be a window cut to size.
        found = [(extra, grids) for extra, grids in found if not extra or grids[2] < 1]
        extra, grids = min(found, key=lambda entry: entry[1][2], default=(0, None))
        if row < 1 and (grids is None or row < grids[2]):
            return _resize(tensor.unsqueeze(axis + 1), axis, (new, 1), smooth).squeeze(axis + 1)
        if grids:
            before, after, _ = grids
            # A relative-position table keeps its extra entries at the end.
            at_end = extra > 0 and before[0] % 2 == 1 and "relative_position" in name
            grid = tensor.narrow(axis, 0 if at_end else extra, before[0] * before[1]).unflatten(axis, before)
            grid = _resize(grid, axis, after, smooth).flatten(axis, axis + 1)
            others = tensor.narrow(axis, before[0] * before[1] if at_end else 0, extra)
            return torch.cat([grid, others] if at_end else [others, grid], axis)
    raise MorphError(
        "it follows the resolution, but its axes are not a grid",
        where=name,
        expected="height and width, or tokens of a grid",
        found=f"{tuple(tensor.shape)} to {shape}",
        todo="Keep the resolution of this model as it is",
    )


def _grid(positions: int, image: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of so many positions in the proportions of an image; None where there are none."""
    sides = [(h, positions // h) for h in range(1, positions + 1) if positions % h == 0]
    # Rows and columns are whole numbers, so the proportions hold up to a row or a column.
    near = [(h, w) for h, w in sides if abs(h - w * image[0] / image[1]) < 1]
    return min(near, key=lambda pair: abs(pair[0] - pair[1] * image[0] / image[1]), default=None)


def _resize(tensor: torch.Tensor, axis: int, size: tuple[int, int], smooth: bool) -> torch.Tensor:
    moved = tensor.movedim((axis, axis + 1), (-2, -1))
    flat = moved.reshape(1, -1, *moved.shape[-2:]).float()
    if smooth:
        sized = F.interpolate(flat, size, mode="bicubic", antialias=True, align_corners=False)
    else:
        sized = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    return sized.to(tensor.dtype).view(*moved.shape[:-2], *size).movedim((-2, -1), (axis, axis + 1)).contiguous()

"""What a view does to the axes of a tensor: merging, splitting, and the ties that keeps regular."""

from __future__ import annotations

import torch

from .slots import Axis, Slots

WHOLE_GROUPS = 8
"""From this many groups on, a grouped axis loses and gains whole groups; with fewer, every group keeps the
same positions. Both leave an ordinary grouped layer; the first keeps each group's arithmetic unchanged, the
second gives a finer choice of widths where there are few groups."""


def reshape(slots: Slots, shape: tuple[int, ...], axes: tuple[Axis, ...], target: tuple[int, ...]) -> tuple[Axis, ...]:
    """Axes of the view of a tensor of `shape` as `target`."""
    result: list[Axis] = [None] * len(target)
    for old, new in _segments(shape, target):
        merged = _merge(slots, [shape[i] for i in old], [axes[i] for i in old])
        if merged is None:
            continue
        sizes = [target[i] for i in new]
        which, axis = split(slots, merged, sizes)
        result[new[which]] = axis
    return tuple(result)


def _segments(shape: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of old and new axes with equal products; axes of size 1 belong to none."""
    old = [i for i, size in enumerate(shape) if size != 1]
    new = [i for i, size in enumerate(target) if size != 1]
    segments = []
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        product_left, product_right = shape[left[0]], target[right[0]]
        while product_left != product_right:
            if product_left < product_right:
                left.append(old.pop(0))
                product_left *= shape[left[-1]]
            else:
                right.append(new.pop(0))
                product_right *= target[right[-1]]
        segments.append((left, right))
    return segments


def _merge(slots: Slots, sizes: list[int], axes: list[Axis]) -> Axis:
    """The slots of several axes flattened into one; at most one of them may be able to shrink."""
    labelled = [i for i, axis in enumerate(axes) if axis is not None]
    if len(labelled) > 1:
        for i in labelled:
            slots.fix(axes[i], "two channel axes are merged into one by a view")
        return None
    if not labelled:
        return None
    (i,) = labelled
    axis = axes[i]
    assert axis is not None
    view = [1] * len(sizes)
    view[i] = sizes[i]
    return axis.view(view).expand(sizes).reshape(-1)


def split(slots: Slots, axis: torch.Tensor, sizes: list[int]) -> tuple[int, torch.Tensor]:
    """The slots of one axis unfolded into `sizes`: the new axis that carries them, and its slots.

    Where the slots vary along one new axis alone (the inverse of a merge), that axis simply carries them.
    Otherwise positions are tied so that one axis can: the whole groups where there are many, the positions
    within the groups where there are few.
    """
    table = axis.view(sizes)
    for i in range(len(sizes)):
        line = _line(table, i)
        if torch.equal(table, line.view([-1 if j == i else 1 for j in range(len(sizes))]).expand(sizes)):
            return i, line
    carrier = 0 if sizes[0] >= WHOLE_GROUPS else len(sizes) - 1
    line = _line(table, carrier)
    view = [-1 if j == carrier else 1 for j in range(len(sizes))]
    slots.tie(table.reshape(-1), line.view(view).expand(sizes).reshape(-1), "")
    return carrier, line


def _line(table: torch.Tensor, axis: int) -> torch.Tensor:
    """The entries along one axis, at position 0 of all others."""
    return table.movedim(axis, 0).reshape(table.shape[axis], -1)[:, 0]

"""Dimension algebra: what a view does to the axes of a tensor.

A view cuts axes into factors and joins factors into axes. The factors of old and new axes are the finest that both
need: (2, 12 x 64) viewed as (2 x 12, 64) has the factors 2, 12 and 64. An axis is cut by `unfold` and joined by `fold`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch

from .slots import Axis, Slots

WHOLE_GROUPS = 8
"""From this many groups on, a grouped axis loses and gains whole groups; with fewer, every group keeps the
same positions. Both leave an ordinary grouped layer; the first keeps each group's arithmetic unchanged, the
second gives a finer choice of widths where there are few groups."""


@dataclass(frozen=True)
class Factor:
    """A part of an axis of a view: its size, and the slots along it."""

    size: int
    axis: Axis


@dataclass(frozen=True)
class Segment:
    """The shortest run of axes that a view turns into others.

    Attributes:
        new: positions of the new axes.
        factors: of each new axis, outermost first.
    """

    new: tuple[int, ...]
    factors: tuple[tuple[Factor, ...], ...]


def reshape(
    slots: Slots, shape: tuple[int, ...], axes: tuple[Axis, ...], target: tuple[int, ...]
) -> tuple[tuple[Axis, ...], list[Segment]]:
    """Axes of the view of a tensor of `shape` as `target`, and how they came about."""
    result: list[Axis] = [None] * len(target)
    if 0 in shape:  # nothing is in it; the last axes stay what they are
        for i, (old, new, axis) in enumerate(zip(shape[::-1], target[::-1], axes[::-1], strict=False), 1):
            if old != new:
                break
            result[-i] = axis
        return tuple(result), []
    segments = []
    for old, new in _runs(shape, target):
        factors = _refactor(slots, [shape[i] for i in old], [axes[i] for i in old], [target[i] for i in new])
        for i, parts in zip(new, factors, strict=True):
            result[i] = fold(slots, parts)
        segments.append(Segment(tuple(new), tuple(map(tuple, factors))))
    return tuple(result), segments


def _runs(shape: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of old and new axes with equal products; axes of size 1 belong to none."""
    old = [i for i, size in enumerate(shape) if size != 1]
    new = [i for i, size in enumerate(target) if size != 1]
    runs = []
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
        runs.append((left, right))
    return runs


def _refactor(slots: Slots, old: list[int], axes: list[Axis], new: list[int]) -> list[list[Factor]]:
    """The factors of each new axis."""
    if len(old) == len(new) == 1:
        return [[Factor(new[0], axes[0])]]
    cuts = sorted({1, *_products(old), *_products(new)})
    if any(large % small for small, large in pairwise(cuts)):
        for axis in axes:
            slots.fix(axis, "a view mixes it with another axis")
        return [[Factor(size, None)] for size in new]
    sizes = [large // small for small, large in pairwise(cuts)]
    factors: list[Factor] = []
    for axis, run in zip(axes, _deal(sizes, old), strict=True):
        factors += [Factor(size, part) for size, part in zip(run, unfold(slots, axis, run), strict=True)]
    return _deal(factors, new, [factor.size for factor in factors])


def _products(sizes: list[int]) -> list[int]:
    return [prod(sizes[: i + 1]) for i in range(len(sizes))]


def _deal(items: list, sizes: list[int], weights: list[int] | None = None) -> list[list]:
    """Items dealt out in order, so that the weights of each hand have the product asked for."""
    rest = list(zip(items, weights or items, strict=True))
    hands = []
    for size in sizes:
        hand: list = []
        product = 1
        while product != size:
            item, weight = rest.pop(0)
            hand.append(item)
            product *= weight
        hands.append(hand)
    return hands


def unfold(slots: Slots, axis: Axis, sizes: list[int]) -> list[Axis]:
    """The slots of one axis unfolded into `sizes`.

    Where they vary along one new axis alone (the inverse of `fold`), it carries them. Otherwise every new axis along
    which they vary has slots of its own, of which the old ones are products.
    """
    if axis is None or len(sizes) == 1:
        return [axis] * len(sizes)
    table = axis.view(sizes)
    varying = [i for i in range(len(sizes)) if not torch.equal(table, table.narrow(i, 0, 1).expand_as(table))]
    if not varying:
        slots.fix(axis, "a view cuts one channel into parts")
        return [None] * len(sizes)
    for i in set(range(len(sizes))) - set(varying):
        table = table.narrow(i, 0, 1)
    if len(varying) == 1:
        carried = [table.reshape(-1)]
    else:
        carried = slots.divide(table.reshape(-1), tuple(sizes[i] for i in varying))
    result: list[Axis] = [None] * len(sizes)
    for i, part in zip(varying, carried, strict=True):
        result[i] = part
    return result


def fold(slots: Slots, factors: list[Factor]) -> Axis:
    """The slots of several axes flattened into one."""
    labelled = [i for i, factor in enumerate(factors) if factor.axis is not None]
    if not labelled:
        return None
    axes = [axis for factor in factors if (axis := factor.axis) is not None]
    whole = axes[0] if len(axes) == 1 else slots.multiply(axes)
    view = [factor.size if i in labelled else 1 for i, factor in enumerate(factors)]
    return whole.view(view).expand([factor.size for factor in factors]).reshape(-1)


def divide_groups(slots: Slots, axis: torch.Tensor, groups: int) -> tuple[int, torch.Tensor]:
    """The axis of a grouped layer as (groups, positions): which of the two carries its slots, and these.

    Positions are tied so that one does: the whole groups where there are many, the positions within the groups where
    there are few; unless the slots vary along one of them only.
    """
    table = axis.view(groups, -1)
    for i, line in enumerate((table[:, :1], table[:1])):
        if torch.equal(table, line.expand_as(table)):
            return i, line.reshape(-1)
    carrier = 0 if groups >= WHOLE_GROUPS else 1
    line = table[:1] if carrier else table[:, :1]
    slots.tie(table.reshape(-1), line.expand_as(table).reshape(-1), "")
    return carrier, line.reshape(-1)

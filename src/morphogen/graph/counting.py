"""What the sizes in a model's code count: the axes that follow attributes, and those that must follow each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isclose, prod
from typing import Any

import torch

from .axes import Factor, Segment, fold, unfold
from .numbers import Attribute, Dim, Equal, Minus, Number, Plus, Quotient, Times, factors_of, identity
from .slots import ALWAYS, Axis, Slots


class Counting:
    """Collects which axis each attribute counts, over all calls.

    Where the code gives the size of one axis to another (`x.reshape(B, N, C)` with the C of the input), the two must
    stay of one size; where it is a plain number, or one computed in ways that are not followed, the axis stays whole.

    Attributes:
        attributes: for each attribute that was met, the axis it counts.
    """

    def __init__(self, slots: Slots):
        self._slots = slots
        self.attributes: dict[Attribute, Axis] = {}
        self._axis_of: Callable[[Dim], Axis] = lambda dim: None
        self._shares: dict[Any, Axis] = {}
        self._computed = Equal()

    def begin(self, axis_of: Callable[[Dim], Axis], computed: Equal) -> None:
        """Another graph is read, in which calls are numbered anew.

        Args:
            axis_of: gives the axis whose size was read.
            computed: what the model's code computed of sizes.
        """
        self._axis_of, self._computed = axis_of, computed
        self._shares.clear()

    def counts(self, number: int | None, axis: Axis) -> None:
        """The code gives this number as the size of an axis.

        Args:
            number: with its origin; None where PyTorch computed it, which says nothing.
            axis: None for an axis that never changes.
        """
        if not isinstance(number, Number):
            if number is not None:
                self._slots.fix(axis, "its size is written in the model's code")
            return
        if axis is not None and not len(axis):  # `i * n` channels are none in the first turn
            return
        match number.origin:
            case Attribute() as attribute:
                if attribute in self.attributes:
                    axis = self._slots.match(self.attributes[attribute], axis, self._shared(attribute))
                self.attributes[attribute] = axis
            case Dim() as dim:
                self._slots.match(
                    axis, self._axis_of(dim), "the model's code gives it the size of an axis that stays whole"
                )
            case Quotient() if identity(number) in self._shares:  # head_dim = C // heads, used again
                self._slots.match(axis, self._shares[identity(number)], "it follows an axis that stays whole")
            case Quotient(left, right) if int(left) == int(number) * int(right):
                if isinstance(right, Number):  # no axis of this view: a number of parts, which stays
                    self.counts(right, None)
                self.counts(left, None if axis is None else axis.repeat(int(right)))
            case Times(factors):
                self._times(factors, axis)
            case Plus(left, right):
                self.counts(left, None if axis is None else axis[: int(left)])
                self.counts(right, None if axis is None else axis[int(left) :])
            case Minus(left, right) if number > 0 and right > 0 and self._known(right):
                whole = [self._axis(right), axis]
                if all(part is None for part in whole):
                    self.counts(left, None)
                    return
                sizes = int(right), int(number)
                always = [torch.full((size,), ALWAYS) for size in sizes]
                parts = [a if part is None else part for part, a in zip(whole, always, strict=True)]
                self.counts(left, torch.cat(parts))
            case origin:
                self._slots.fix(axis, "its size is computed in the model's code")
                for part in vars(origin).values():
                    if isinstance(part, Number):
                        self.counts(part, None)

    def enters(self, value: float) -> bool:
        """A number that is not whole enters what an op computes; returns whether it must be the same at every size.

        A square root of a size need not, nor a fourth: as in PyTorch's own attention, a scale follows the number of
        channels. Where it is computed from a size in another way, that stays.
        """
        if any(isclose(value, root) for root in self._computed.roots):
            return False
        for result, size in self._computed.values:
            if isclose(value, result):
                self.counts(size, None)
        return True

    def _known(self, number: int) -> bool:
        """Whether it is known which axis a number counts: with a plain one, none that changes."""
        origin = number.origin if isinstance(number, Number) else None
        return origin is None or isinstance(origin, Dim) or origin in self.attributes

    def _axis(self, number: int) -> Axis:
        origin = number.origin if isinstance(number, Number) else None
        if isinstance(origin, Dim):
            return self._axis_of(origin)
        return self.attributes[origin] if isinstance(origin, Attribute) else None

    def stays(self, number: int | None) -> bool:
        """Whether a number is the size of an axis that never changes, such as the input's own."""
        return isinstance(number, Number) and isinstance(number.origin, Dim) and self._axis_of(number.origin) is None

    def _times(self, factors: Sequence[int], axis: Axis) -> None:
        """A product counts an axis: one factor alone, so many times; several, each its part of the axis."""
        follow = [factor for factor in factors if isinstance(factor, Number)]
        if axis is None or len(follow) > 1:
            parts = unfold(self._slots, axis, list(map(int, factors)))
            for factor, part in zip(factors, parts, strict=True):
                self.counts(factor, part)
            return
        times = prod(1 if factor is follow[0] else factor for factor in factors)
        rows, columns = axis.view(times, -1), axis.view(-1, times)
        line = columns[:, 0]
        if not torch.equal(columns, line[:, None].expand_as(columns)):
            line = rows[0]
            self._slots.tie(rows, line.expand_as(rows), "")
        self.counts(follow[0], line)

    def segment(self, segment: Segment, numbers: Sequence[int | None]) -> None:
        """The code gives these numbers as the sizes of the new axes of a view."""
        axes = zip(segment.new, segment.factors, strict=True)
        parts = [part for i, factors in axes for part in _dealt(numbers[i], factors)]
        for number, factors in parts:
            if isinstance(number, Number) and isinstance(number.origin, Quotient):
                left, right = number.origin.left, number.origin.right
                # (heads, C // heads): C counts both together.
                divisors = [
                    p for d in factors_of(right) for p in parts if p[0] is not None and identity(d) == identity(p[0])
                ]
                together = [p for p in parts if p[1] is factors or any(p is d for d in divisors)]
                whole = [factor for p in together for factor in p[1]]
                if len(divisors) == len(factors_of(right)) and _size(whole) == int(left):
                    self._shares[identity(number)] = fold(self._slots, factors)
                    self.counts(left, fold(self._slots, whole))
                    continue
            if number is not None:
                self.counts(number, fold(self._slots, factors))

    @staticmethod
    def _shared(attribute: Attribute) -> str:
        return f"{attribute.path}.{attribute.name} counts it, and an axis that stays whole".lstrip(".")


def _dealt(number: int | None, factors: Sequence[Factor]) -> list[tuple[int | None, list[Factor]]]:
    """The factors of an axis, by the numbers whose product its size is."""
    if number is None or len(factors_of(number)) == 1:
        return [(number, list(factors))]
    rest, parts = list(factors), []
    for each in factors_of(number):
        hand: list[Factor] = []
        while rest and _size(hand) < int(each):
            hand.append(rest.pop(0))
        if _size(hand) != int(each):
            return [(number, list(factors))]
        parts.append((each, hand))
    return parts if not rest else [(number, list(factors))]


def _size(factors: Sequence[Factor]) -> int:
    return prod(factor.size for factor in factors)

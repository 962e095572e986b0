"""Which positions of which axes live and die together: what the rules say of slots.

A slot is one position of one tensor axis. Rules tie slots (both alive or both dropped), fix them (always alive), or
say that one is a product (alive where all of its factors are: channel 70 is position 6 of head 1, and lives where
position 6 of all heads and head 1 do). Nothing is looked up while rules run, so the order of ops does not matter;
`units.py` draws the conclusions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ALWAYS = 0
"""The slot that is alive in every sub-network."""

Axis = torch.Tensor | None
"""The slots of one axis (int64, one per position), or None where all of it is always alive."""


@dataclass(frozen=True)
class Product:
    """Slots that are alive where all of their factors are.

    Attributes:
        whole: n slots.
        factors: two or more tensors of n slots.
        sizes: how many different ones each factor has; their product is n.
    """

    whole: torch.Tensor
    factors: tuple[torch.Tensor, ...]
    sizes: tuple[int, ...]


class Slots:
    """Hands out slots and collects what is known of them.

    Attributes:
        count: number of slots handed out.
        ties: pairs of axes that are alive together.
        fixed: axes that are always alive, and why.
        products: slots with factors.
        alike: pairs of axes of which as many positions must be alive.
    """

    def __init__(self) -> None:
        self.count = 1
        self.ties: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.fixed: list[tuple[torch.Tensor, str]] = []
        self.products: list[Product] = []
        self.alike: list[tuple[torch.Tensor, torch.Tensor]] = []

    def fresh(self, size: int) -> torch.Tensor:
        """New slots for an axis of `size` positions."""
        self.count += size
        return torch.arange(self.count - size, self.count, device="cpu")

    def tie(self, left: Axis, right: Axis, reason: str) -> Axis:
        """The two axes, position by position, are alive together; a fixed one fixes the other."""
        if left is None or right is None:
            for axis in (left, right):
                if axis is not None:
                    self.fix(axis, reason)
            return None
        if left.numel() != right.numel():
            raise ValueError(f"axes of {left.numel()} and {right.numel()} positions cannot be tied")
        if left is not right:
            self.ties.append((left.reshape(-1), right.reshape(-1)))
        return left

    def tied(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether these two axes are one, or were tied to each other."""
        if torch.equal(one, other):
            return True
        pairs = ((one, other), (other, one))
        return any(torch.equal(left, a) and torch.equal(right, b) for left, right in self.ties for a, b in pairs)

    def fix(self, axis: Axis, reason: str) -> None:
        """Keep an axis whole in every sub-network; `reason` is what the user will read."""
        if axis is not None:
            self.fixed.append((axis.reshape(-1), reason))

    def match(self, left: Axis, right: Axis, reason: str) -> Axis:
        """As many positions of the one axis are alive as of the other; a fixed one fixes the other.

        They are tied, unless they turn out to consist of the same units in another order.
        """
        if left is None or right is None:
            return self.tie(left, right, reason)
        if left is not right and not torch.equal(left, right):
            self.alike.append((left, right))
        return left

    def multiply(self, axes: list[torch.Tensor]) -> torch.Tensor:
        """The slots of several axes flattened into one: each is alive where its position on every axis is."""
        sizes = tuple(len(axis) for axis in axes)
        whole = self.fresh(int(torch.tensor(sizes).prod()))
        self.products.append(Product(whole, _spread(axes, sizes), sizes))
        return whole

    def divide(self, whole: torch.Tensor, sizes: tuple[int, ...]) -> list[torch.Tensor]:
        """New slots for the axes that an axis is unfolded into; the inverse of `multiply`."""
        axes = [self.fresh(size) for size in sizes]
        self.products.append(Product(whole, _spread(axes, sizes), sizes))
        return axes


def _spread(axes: list[torch.Tensor], sizes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Each axis repeated over all others."""
    return tuple(
        axis.view([-1 if j == i else 1 for j in range(len(sizes))]).expand(sizes).reshape(-1)
        for i, axis in enumerate(axes)
    )

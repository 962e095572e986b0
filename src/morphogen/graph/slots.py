"""Which positions of which axes live and die together: ties between slots, solved in one pass.

A slot is one position of one tensor axis. Rules tie slots (both alive or both dropped) or fix them
(always alive); nothing is looked up while rules run, so the order of ops does not matter.
"""

from __future__ import annotations

import torch

ALWAYS = 0
"""The slot that is alive in every sub-network."""

Axis = torch.Tensor | None
"""The slots of one axis (int64, one per position), or None where all of it is always alive."""


class Slots:
    """Hands out slots, collects ties, and partitions the slots into units."""

    def __init__(self) -> None:
        self.count = 1
        self._left: list[torch.Tensor] = []
        self._right: list[torch.Tensor] = []
        self._fixed: list[tuple[torch.Tensor, str]] = []

    def fresh(self, size: int) -> torch.Tensor:
        """New slots for an axis of `size` positions."""
        self.count += size
        return torch.arange(self.count - size, self.count)

    def tie(self, left: Axis, right: Axis, reason: str) -> Axis:
        """The two axes, position by position, are alive together; a fixed one fixes the other."""
        if left is None or right is None:
            for axis in (left, right):
                if axis is not None:
                    self.fix(axis, reason)
            return None
        if left is not right:
            self._left.append(left)
            self._right.append(right)
        return left

    def fix(self, axis: Axis, reason: str) -> None:
        """Keep an axis whole in every sub-network; `reason` is what the user will read."""
        if axis is not None:
            self._fixed.append((axis, reason))

    def solve(self) -> tuple[torch.Tensor, dict[int, str]]:
        """The unit of every slot, and why units are always alive.

        Returns:
            For each slot the smallest slot it is tied to, which names its unit; and, for each unit that must
            stay alive, the first reason given (empty for what is fixed by nature, such as padding).
        """
        units = _components(self.count, self._left, self._right)
        reasons: dict[int, str] = {}
        for axis, reason in self._fixed:
            for unit in units[axis].unique().tolist():
                reasons.setdefault(unit, reason)
        reasons.setdefault(ALWAYS, "")
        return units, reasons


def _components(count: int, left: list[torch.Tensor], right: list[torch.Tensor]) -> torch.Tensor:
    """Smallest member of each connected component, by hooking roots and pointer jumping."""
    root = torch.arange(count)
    if not left:
        return root
    a, b = torch.cat(left), torch.cat(right)
    while True:
        root_a, root_b = root[a], root[b]
        if torch.equal(root_a, root_b):
            return root
        low, high = torch.minimum(root_a, root_b), torch.maximum(root_a, root_b)
        root.scatter_reduce_(0, high, low, "amin")
        while not torch.equal(root, root[root]):
            root = root[root]

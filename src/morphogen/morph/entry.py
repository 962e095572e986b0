"""What a depth operator is: it fills the blocks that enter. And the table of those there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from ..dense.depth import Table, interpolated
from ..dense.subnet import BlockStack, Role
from ..errors import MorphError
from .growth import normal


@dataclass(frozen=True)
class Entry:
    """One tensor of a block that enters: what a depth operator is given.

    Attributes:
        name: of the tensor.
        role: what it is to its layer.
        stack: the block stack.
        unit: the position of the entering unit in the dense network.
        before, after: the positions alive before and after the morph; a block that leaves is in neither.
        initial: mean and standard deviation of this tensor when the model was traced; None for one that is
            not floating-point.
        online, averaged: copies of the grown network's tensor of a name, and of the momentum network's; there
            are those of the units in `before` alone.
        generator: for random numbers; None for PyTorch's default.
        kept: for an operator that restores, the tensor as it was when its block left.
    """

    name: str
    role: Role
    stack: BlockStack
    unit: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    initial: tuple[float, float] | None
    online: Callable[[str], torch.Tensor]
    averaged: Callable[[str], torch.Tensor]
    generator: torch.Generator | None = None
    kept: torch.Tensor | None = None

    @property
    def below(self) -> int:
        """The nearest old unit below this one; above it where there is none."""
        return max((unit for unit in self.before if unit < self.unit), default=self.before[0])

    @property
    def rank(self) -> int:
        """The place of this unit among those alive after the morph."""
        return self.after.index(self.unit)

    @property
    def writes(self) -> bool:
        """Whether this tensor writes into the residual stream (see `BlockStack.writers`)."""
        return self.stack.writers is not None and self.name in self.stack.writers

    @property
    def scalable(self) -> bool:
        """Whether it writes into the residual stream through a layer whose output can be scaled."""
        return self.stack.writers is not None and self.stack.writers.get(self.name, False)

    def copy(self, unit: int, *, averaged: bool = False) -> torch.Tensor:
        """The same tensor of an old unit, or of its average in the momentum network."""
        if unit not in self.before:
            raise MorphError(
                "the depth operator copies a block that is not alive",
                where=self.name,
                expected=f"one of the units {self.before}",
                found=f"{unit}",
            )
        name = self.stack.counterpart(self.name, self.unit, unit)
        return (self.averaged if averaged else self.online)(name)

    def randn_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Standard normal numbers in the shape, dtype and format of a tensor."""
        return torch.empty_like(tensor).copy_(normal(tensor, tuple(tensor.shape), self.generator))


class DepthOperator(Protocol):
    """Gives a tensor of an entering block its value, in the shape of the same tensor of the old blocks."""

    def __call__(self, entry: Entry) -> torch.Tensor:
        """The value of tensor `entry.name`."""
        ...


@dataclass(frozen=True)
class DepthGrowth:
    """An entry of the table.

    Attributes:
        fill: the operator.
        table: where it puts new blocks among the old ones.
        momentum: it reads the momentum network.
        everything: the whole grown network, old blocks too, comes from the momentum network.
        silent: the new blocks pass their input through, so they need residual branches.
        rezero: they do so by a learned factor on each branch; see `rezero.py`.
        restores: it reads what was kept of the blocks when they left.
    """

    fill: DepthOperator
    table: Table = interpolated
    momentum: bool = False
    everything: bool = False
    silent: bool = False
    rezero: bool = False
    restores: bool = False


DEPTH_OPERATORS: dict[str, DepthGrowth] = {}
"""The table: name -> operator. The modules of `morphogen.operators` enter theirs."""


def depth_operator(
    name: str,
    *,
    table: Table = interpolated,
    momentum: bool = False,
    everything: bool = False,
    silent: bool = False,
    rezero: bool = False,
    restores: bool = False,
) -> Callable[[DepthOperator], DepthOperator]:
    """Enter the decorated depth operator into the table; the flags are those of `DepthGrowth`."""

    def register(function: DepthOperator) -> DepthOperator:
        DEPTH_OPERATORS[name] = DepthGrowth(function, table, momentum, everything, silent, rezero, restores)
        return function

    return register


def depth_named(name: str | DepthOperator) -> DepthGrowth:
    """The depth operator of that name; a function of one's own is taken as it is.

    Raises:
        MorphError: there is none of that name.
    """
    if not isinstance(name, str):
        if not callable(name):
            raise MorphError("not a depth operator", expected="a name or a function", found=repr(name))
        return next((entry for entry in DEPTH_OPERATORS.values() if entry.fill is name), DepthGrowth(name))
    if name not in DEPTH_OPERATORS:
        raise MorphError(f"no depth operator '{name}'", expected="one of " + ", ".join(sorted(DEPTH_OPERATORS)))
    return DEPTH_OPERATORS[name]

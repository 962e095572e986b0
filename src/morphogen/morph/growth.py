"""What a growth operator (zeta of the papers) is, and the table of those there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from ..errors import MorphError
from .tensors import TensorMap


@dataclass(frozen=True)
class Gap:
    """A tensor that grows: what a growth operator is given.

    Attributes:
        map: shapes before and after, role, and where each position comes from.
        old: the tensor before.
        generator: for random numbers; None for PyTorch's default.
    """

    map: TensorMap
    old: torch.Tensor
    generator: torch.Generator | None = None

    def randn(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers on the tensor's device, float32 (float64 for a float64 tensor)."""
        return normal(self.old, shape, self.generator)

    def matrices(self, tensor: torch.Tensor) -> torch.Tensor:
        """A `weight` as (groups, out, in, taps), each convolution group by itself: a view of a contiguous one."""
        groups = self.map.groups if tensor.shape == self.map.new_shape else self._old_groups
        split = tensor.reshape(groups, tensor.shape[0] // groups, tensor.shape[1], -1)
        return split if self.map.role.out_axis == 0 else split.transpose(1, 2)

    @property
    def _old_groups(self) -> int:
        return (
            self.map.groups * self.map.old_shape[0] // self.map.new_shape[0]
            if self.map.role.blockwise
            else self.map.groups
        )

    def carried(self, axis: int) -> torch.Tensor:
        """Which positions of a weight's axis, within one convolution group, were alive (boolean)."""
        size, axis_map = self.map.new_shape[axis], self.map.axes[axis]
        mask = torch.ones(size, dtype=torch.bool) if axis_map is None else axis_map.carried
        return mask.view(self.map.groups, -1)[0] if axis == 0 else mask


def normal(like: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    """Standard normal numbers on the device of a tensor, float32 (float64 for a float64 tensor)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if generator is None or generator.device == like.device:
        return torch.randn(shape, generator=generator, device=like.device, dtype=dtype)
    return torch.randn(shape, generator=generator, dtype=dtype).to(like.device)


class GrowthOperator(Protocol):
    """Fills what is new of a tensor; what was alive must come back unchanged."""

    def __call__(self, gap: Gap) -> torch.Tensor:
        """The tensor of `gap.map.new_shape`, in the dtype, device and memory format of `gap.old`."""
        ...


OPERATORS: dict[str, GrowthOperator] = {}
"""The table: name -> operator. The modules of `morphogen.operators` enter theirs."""


def operator(name: str) -> Callable[[GrowthOperator], GrowthOperator]:
    """Enter the decorated operator into the table."""

    def register(function: GrowthOperator) -> GrowthOperator:
        OPERATORS[name] = function
        return function

    return register


def named(name: str | GrowthOperator) -> GrowthOperator:
    """The operator of that name; an operator itself is passed through.

    Raises:
        MorphError: there is none of that name.
    """
    if not isinstance(name, str):
        return name
    if name not in OPERATORS:
        raise MorphError(f"no growth operator '{name}'", expected="one of " + ", ".join(sorted(OPERATORS)))
    return OPERATORS[name]

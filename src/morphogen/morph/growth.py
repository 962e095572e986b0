"""What a growth operator (zeta of the papers) is, and the table of those there are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from ..errors import MorphError
from ..spec import check_value, parse_call
from .tensors import TensorMap


@dataclass(frozen=True)
class Gap:
    """A tensor that grows: what a growth operator is given.

    Attributes:
        map: shapes before and after, role, and where each position comes from.
        old: the tensor before.
        generator: for random numbers; None for PyTorch's default.
        above: the same tensor of the next block of its stack, before; None where there is none of this size.
        kept: for an operator that restores, the tensor after, whose new entries are what they were when they left.
    """

    map: TensorMap
    old: torch.Tensor
    generator: torch.Generator | None = None
    above: torch.Tensor | None = None
    kept: torch.Tensor | None = None

    def randn(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers on the tensor's device, float32 (float64 for a float64 tensor)."""
        return normal(self.old, shape, self.generator)

    def matrices(self, tensor: torch.Tensor) -> torch.Tensor:
        """A `weight` as (groups, out, in, taps), each convolution group by itself: a view of a contiguous one."""
        if self.map.role.in_axis > 1:  # a kernel that spans its inputs
            return tensor.reshape(1, tensor.shape[0], -1, tensor.shape[-1]).transpose(2, 3)
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
        mask = torch.ones(size, dtype=torch.bool, device="cpu") if axis_map is None else axis_map.carried
        return mask.view(self.map.groups, -1)[0] if axis == 0 else mask


def normal(like: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    """Standard normal numbers on the device of a tensor, float32 (float64 for a float64 tensor)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=dtype).to(like.device)


class GrowthOperator(Protocol):
    """Fills what is new of a tensor; what was alive must come back unchanged, or as `WidthGrowth.rescales` says."""

    def __call__(self, gap: Gap) -> torch.Tensor:
        """The tensor of `gap.map.new_shape`, in the dtype, device and memory format of `gap.old`."""
        ...


@dataclass(frozen=True)
class WidthGrowth:
    """An entry of the table.

    Attributes:
        fill: the operator.
        rescales: what was alive comes back as `TensorMap.divide` has it: weights that read copied channels are
            divided by the number of copies. Averaged copies of the model are then grown by the operator itself, with
            its default settings, since their old weights have to be divided too.
        preserving: with its default settings the grown network computes what the old one did, as far as all that
            is between its weights works channel by channel.
        restores: it reads what was kept of the new channels when they left.
        settings: further arguments of the operator.
    """

    fill: Callable[..., torch.Tensor]
    rescales: bool = False
    preserving: bool = False
    restores: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


OPERATORS: dict[str, WidthGrowth] = {}
"""The table: name -> operator. The modules of `morphogen.operators` enter theirs."""


def operator(
    name: str, *, rescales: bool = False, preserving: bool = False, restores: bool = False
) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Enter the decorated operator into the table; the flags are those of `WidthGrowth`."""

    def register(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        OPERATORS[name] = WidthGrowth(function, rescales, preserving, restores)
        return function

    return register


def named(name: str | GrowthOperator) -> WidthGrowth:
    """The operator of that name, with settings where it has any: `net2net(noise=0.01)`. A function is taken as it is.

    Raises:
        ConfigError: it cannot be read, or a setting has a value of another type.
        MorphError: there is none of that name, or it has no such setting.
    """
    if not isinstance(name, str):
        return next((entry for entry in OPERATORS.values() if entry.fill is name), WidthGrowth(name))
    kind, settings = parse_call(name)
    if kind not in OPERATORS:
        raise MorphError(f"no growth operator '{kind}'", expected="one of " + ", ".join(sorted(OPERATORS)))
    growth = OPERATORS[kind]
    parameters = inspect.signature(growth.fill).parameters
    known = [*parameters][1:]
    if unknown := settings.keys() - set(known):
        expected = "one of " + ", ".join(known) if known else "none"
        raise MorphError(f"{kind} has no setting '{min(unknown)}'", expected=expected)
    for key, value in settings.items():
        check_value(kind, value, parameters[key])
    return replace(growth, settings=settings) if settings else growth

"""What a growth operator (zeta of the papers) is, and the table of those there are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from math import prod
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
        """A `weight` after the morph as (matrices, out, in, taps): one matrix for each convolution group, and for each
        position of its batch axes. `tensor` is the way back."""
        whole = tensor.reshape(self._grouped).permute(self._order)
        return whole.reshape([prod(whole.shape[start:end]) for start, end in self._parts])

    def tensor(self, matrices: torch.Tensor) -> torch.Tensor:
        """The weight that `matrices` has taken apart."""
        order, shape = self._order, self._grouped
        back = sorted(range(len(order)), key=order.__getitem__)
        return matrices.reshape([shape[axis] for axis in order]).permute(back).reshape(self.map.new_shape)

    @property
    def fan_in(self) -> int:
        """How many entries of the weight an output of the grown layer sums over."""
        shape, (_, _, ins, taps) = [self._grouped[axis] for axis in self._order], self._parts
        return prod(shape[slice(*ins)]) * prod(shape[slice(*taps)])

    @property
    def fresh(self) -> torch.Tensor:
        """Which of the matrices are new altogether (boolean)."""
        groups, axis = self.map.groups, self.map.axes[0]
        known = torch.ones(groups, dtype=torch.bool, device="cpu")
        if self.map.role.blockwise and axis is not None:
            known = axis.carried.view(groups, -1)[:, 0]
        return ~(known[:, None] & self.carried(self.map.role.batch)).flatten()

    def carried(self, axes: Sequence[int]) -> torch.Tensor:
        """Which positions of a weight's axes, as one axis of its matrices, were alive (boolean)."""
        mask = torch.ones(1, dtype=torch.bool, device="cpu")
        for dim in axes:
            axis = self.map.axes[dim]
            own = torch.ones(self.map.new_shape[dim], dtype=torch.bool, device="cpu") if axis is None else axis.carried
            own = own.view(self.map.groups, -1).any(0) if dim == 0 else own
            mask = (mask[:, None] & own).flatten()
        return mask

    @property
    def _grouped(self) -> list[int]:
        """The shape after the morph, with the groups of a convolution as an axis of their own, in front."""
        first, *rest = self.map.new_shape
        return [self.map.groups, first // self.map.groups, *rest]

    @property
    def _order(self) -> list[int]:
        """The axes of `_grouped`, those of `_parts` one after the other."""
        role = self.map.role
        named = (*role.batch, *role.outs, *role.ins)
        taps = (axis for axis in range(len(self.map.new_shape)) if axis not in named)
        return [0, *(axis + 1 for axis in (*named, *taps))]

    @property
    def _parts(self) -> list[tuple[int, int]]:
        """Where in `_order` matrices, outputs, inputs and taps begin and end."""
        role = self.map.role
        ends = list(accumulate((1 + len(role.batch), len(role.outs), len(role.ins))))
        return list(pairwise([0, *ends, len(self.map.new_shape) + 1]))


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

"""The table of rules: how an op's output axes follow from its inputs', and which positions it ties.

A rule reads a `Call` and returns the axes of the output (a tuple, one `Axis` per dimension; a list of such
tuples for an op with several outputs). To add one, decorate a function with `rule("name")` and place it in
the file it belongs to; `name` is the op without namespace `aten.`, overload and trailing underscore, so
one rule serves `add`, `add_` and every overload. Ops of other namespaces are named whole: `mylib.myop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...dense.program import rule_name
from ...dense.subnet import Role
from ...errors import ConfigError
from ..axes import reshape
from ..counting import Counting
from ..numbers import Number, match
from ..slots import Axis, Slots

Axes = tuple[Axis, ...]

OF_INPUT = "reads channels that are fixed, such as the model's input"
"""Why the channels of an image stay whole."""


PLACES = frozenset(
    """dim dim0 dim1 dims start_dim end_dim axis0 axis1 source destination dimension stride padding dilation kernel_size
    output_padding pad size sizes shape split_size split_sizes start end length repeats output_size normalized_shape
    groups num_groups num_layers chunks sections indices n m steps step max k num_classes minlength correction
    upscale_factor downscale_factor padding_idx el path""".split()
)
"""Arguments of ops that say where, or how many positions; those among them that count axes are the rules' matter."""


@dataclass(frozen=True)
class Value:
    """A tensor in the graph.

    Attributes:
        shape, axes: its shape, and the slots of its axes.
        origin: the parameters and buffers it is computed from; None where the model's input is among its sources.
    """

    shape: tuple[int, ...]
    axes: Axes
    origin: frozenset[str] | None = None


@dataclass(frozen=True)
class Call:
    """One op as a rule sees it.

    Attributes:
        slots: where to tie and fix.
        args: the op's arguments by the names of its schema, tensors as `Value`, defaults filled in.
        shapes: the shapes of the outputs.
        parameters: the model's parameters and buffers by name.
        roles: what each of them is to its layer; the first to claim one wins, but for factors of a weight.
        lengths: of parameters that weight norm reads as lengths, the axis of the weight that they belong to.
        sizes: arguments of this call that count axes, by name; filled by `keeps`.
        used: for each output, whether the model does anything with it.
        given: the numbers that the model's code gave to the call; None where they are not known.
        counting: what is known of them.
    """

    slots: Slots
    op: str
    args: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    parameters: Mapping[str, Value]
    roles: dict[str, Role]
    lengths: dict[str, int]
    sizes: dict[str, Axes]
    used: tuple[bool, ...]
    given: tuple[int, ...] | None
    counting: Counting

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    @property
    def input(self) -> Value:
        """The first argument."""
        return next(iter(self.args.values()))

    def values(self) -> Iterator[Value]:
        """All tensors among the arguments, those in lists included."""
        for arg in self.args.values():
            for item in arg if isinstance(arg, (list, tuple)) else (arg,):
                if isinstance(item, Value):
                    yield item

    def role(self, value: Value | None, role: Role) -> None:
        """Note what a parameter or buffer is to the layer that reads it, also after arithmetic of its own
        (weight standardisation, a cast) and with its axes in another order.

        Where weight norm gives a length to every input (as it does to transposed convolutions), new weights need one:
        they are random, and the new lengths 0.
        """
        names = () if value is None else value.origin or ()
        for name in names:
            assert value is not None
            own = _role_of(self.parameters[name], value, role)
            factor = _role_of_factor(self.slots, self.parameters[name], value, role) if own is None else None
            if factor is not None:  # what factors are to each other was noted before
                self.roles[name] = factor
            elif own is not None:
                of_inputs = [each for each in names if own.kind == "weight" and self.lengths.get(each) in own.ins]
                self.roles.setdefault(name, Role("direct") if of_inputs else own)
                self.roles.update(dict.fromkeys(of_inputs, Role("shift")))

    def keeps(self, /, **sizes: Axis | Axes) -> None:
        """Note sizes that count these axes: arguments of the op, or attributes its module keeps by these names.

        An argument noted with None must be the same at every size.
        """
        for name, axes in sizes.items():
            self.sizes[name] = axes if isinstance(axes, tuple) else (axes,)
            for number, axis in zip(self.numbers(self.args.get(name)), self.sizes[name], strict=False):
                if isinstance(number, Number) or axis is not None:
                    self.counts(number, axis)

    def keeps_values(self) -> None:
        """Note that numbers which enter what the op computes (a slope, an index, a fill value) are the same at every
        size."""
        for name, value in self.args.items():
            numbers = value if isinstance(value, (tuple, list)) else (value,)
            if name not in (*PLACES, *self.sizes) and all(type(n) in (int, float) and n == n for n in numbers):
                floats = [number for number in numbers if type(number) is float]
                if all([self.counting.enters(number) for number in floats]):
                    self.keeps(**{name: (None,) * len(numbers)})

    def numbers(self, literal: Any) -> list[int | None]:
        """An argument that holds numbers, with their origins; None for those that PyTorch computed."""
        return match(self.given, literal)

    def counts(self, number: int | None, axis: Axis) -> None:
        """A number given by the model's code is the size of an axis; see `Counting.counts`."""
        self.counting.counts(number, axis)

    def meet(self, tensors: Sequence[tuple[tuple[int, ...], Axes]]) -> Axes:
        """Tensors broadcast against each other: axes that meet are alive together.

        Args:
            tensors: shapes and axes.
        """
        longest = max(len(shape) for shape, _ in tensors)
        axes: list[Axis] = [None] * longest
        for back in range(-longest, 0):
            size = max(shape[back] for shape, _ in tensors if len(shape) >= -back)
            met = [a[back] for shape, a in tensors if len(shape) >= -back and shape[back] == size != 1]
            for axis in met[1:]:
                met[0] = self.slots.tie(met[0], axis, "meets an axis of fixed size")
            axes[back] = met[0] if met else None
        return tuple(axes)

    def sized(self, shape: tuple[int, ...], numbers: Sequence[int | None]) -> Axes:
        """Axes of a new tensor: one for each size that is not plain."""
        axes: list[Axis] = [None] * len(shape)
        for i, number in enumerate(numbers):
            if isinstance(number, Number) and shape[i] > 1:
                axes[i] = self.slots.fresh(shape[i])
                self.counts(number, axes[i])
        return tuple(axes)

    def view(self, value: Value, shape: tuple[int, ...], numbers: Sequence[int | None] = ()) -> Axes:
        """The axes of a tensor viewed in another shape, and the numbers that its code gives for the new axes."""
        axes, segments = reshape(self.slots, value.shape, value.axes, shape)
        for segment in segments if numbers else ():
            self.counting.segment(segment, numbers)
        if 0 in shape:  # a view of nothing has no segments
            for number, axis in zip(numbers, axes, strict=False):
                self.counts(number, axis)
        return axes

    def reads(self, value: Value, dim: int, layer: Axis) -> Axis:
        """Tie an axis of the layer's own tensor to the axis it reads."""
        return self.slots.tie(value.axes[dim], layer, OF_INPUT)


def _role_of(parameter: Value, value: Value, role: Role) -> Role | None:
    """The role of a parameter that a value with this role is, its axes in any order; None where it is not."""
    order = _order(parameter, value)
    if order is None or (role.groups > 1 and order[0] != 0):  # groups lie along the first axis of a weight
        return None
    return role.through(order)


def _role_of_factor(slots: Slots, parameter: Value, value: Value, role: Role) -> Role | None:
    """The role of a parameter of a weight that is made of several: of a product `B @ A` the one that has its inputs
    comes first, the one that has its outputs last. None where that cannot be told."""
    if role.kind != "weight" or len(value.origin or ()) < 2 or sum(size > 1 for size in parameter.shape) < 2:
        return None
    places = [_place(slots, axis, value) for axis in parameter.axes]
    outs, ins = (tuple(dim for dim, at in enumerate(places) if at in axes) for axes in (role.outs, role.ins))
    inner = tuple(dim for dim, at in enumerate(places) if at is None)
    return None if bool(outs) == bool(ins) or not inner else Role("weight", outs or inner, ins or inner)


def _place(slots: Slots, axis: Axis, value: Value) -> int | None:
    """The axis of a value that this axis was tied to; None where there is none."""
    alike = (
        i for i, other in enumerate(value.axes) if other is not None and axis is not None and slots.tied(axis, other)
    )
    return next(alike, None)


def _order(parameter: Value, value: Value) -> list[int] | None:
    """For each axis of a value the axis of a parameter that it is; None where it is not its axes in some order."""
    rest, order = list(range(len(parameter.shape))), list[int]()
    for size, axis in zip(value.shape, value.axes, strict=True):
        alike = [dim for dim in rest if parameter.shape[dim] == size and _same(parameter.axes[dim], axis)]
        if not alike:
            return None
        order.append(alike[0])
        rest.remove(alike[0])
    return None if rest else order


def _same(one: Axis, other: Axis) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


Rule = Callable[[Call], Axes | list[Axes]]
RULES: dict[str, Rule] = {}
"""The table: op name -> rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter the decorated function into the table.

    Args:
        names: of the ops it is for: `relu` for all of `aten.relu`, `mylib.myop` for an op of another namespace.

    Raises:
        ConfigError: no name, or something else.
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            "a rule needs the names of its ops",
            expected="@morphogen.rule('mylib.myop')",
            found=", ".join(map(repr, names)) or "none",
        )

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(map(rule_name, names), function))
        return function

    return register


LAYERS: dict[type[nn.Module], Rule] = {}
"""Layers that are read as a whole, whatever ops they run: type -> rule."""


def layer_rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Enter the decorated function as the rule for whole layers of these types.

    It is what `rule` is for an op; the arguments of its call are the tensors that go in, `input`, `input_1` and so on
    in the order in which the layer first uses them, and its own parameters and buffers by their names; sizes noted
    with `keeps` are attributes of the layer. A type stands for itself alone, not for those derived from it, and for
    layers inside a model, not for the model itself.

    Raises:
        ConfigError: no type, or something else.
    """
    if not types or not all(isinstance(each, type) and issubclass(each, nn.Module) for each in types):
        raise ConfigError(
            "a rule for a layer needs its type",
            expected="@morphogen.layer_rule(MyLayer)",
            found=", ".join(map(repr, types)) or "none",
        )

    def register(function: Rule) -> Rule:
        LAYERS.update(dict.fromkeys(types, function))
        return function

    return register

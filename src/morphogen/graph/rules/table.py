"""The table of rules: how an op's output axes follow from its inputs', and which positions it ties.

A rule reads a `Call` and returns the axes of the output (a tuple, one `Axis` per dimension; a list of such
tuples for an op with several outputs). To add one, decorate a function with `rule("name")` and place it in
the file it belongs to; `name` is the op without namespace `aten.`, overload and trailing underscore, so
one rule serves `add`, `add_` and every overload. Ops of other namespaces are named whole: `mylib.myop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...subnet import Role
from ..slots import Axis, Slots

Axes = tuple[Axis, ...]


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
        roles: what each of them is to its layer; the first to claim one wins.
        sizes: arguments of this call that count axes, by name; filled by `keeps`.
    """

    slots: Slots
    op: str
    args: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    parameters: Mapping[str, Value]
    roles: dict[str, Role]
    sizes: dict[str, Axes]

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
        (weight standardisation, a cast)."""
        for name in (value.origin or ()) if value is not None else ():
            if value is not None and _same_axes(self.parameters[name], value):
                self.roles.setdefault(name, role)

    def keeps(self, /, **sizes: Axis | Axes) -> None:
        """Note sizes that count these axes: arguments of the op, or attributes its module keeps by these names.

        An argument noted with None must be the same at every size.
        """
        for name, axes in sizes.items():
            self.sizes[name] = axes if isinstance(axes, tuple) else (axes,)

    def reads(self, value: Value, dim: int, layer: Axis) -> Axis:
        """Tie an axis of the layer's own tensor to the axis it reads."""
        return self.slots.tie(value.axes[dim], layer, "reads channels that are fixed, such as the model's input")


def _same_axes(left: Value, right: Value) -> bool:
    """Whether two tensors have the same slots in the same places, so that one is not the other transposed."""
    return left.shape == right.shape and all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(left.axes, right.axes, strict=True)
    )


Rule = Callable[[Call], Axes | list[Axes]]
RULES: dict[str, Rule] = {}
"""The table: op name -> rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter the decorated function into the table under each of `names`."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register

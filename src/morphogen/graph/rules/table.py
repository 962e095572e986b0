"""The table of rules: how an op's output axes follow from its inputs', and which positions it ties.

A rule reads a `Call` and returns the axes of the output (a tuple, one `Axis` per dimension; a list of such
tuples for an op with several outputs). To add one, decorate a function with `rule("name")` and place it in
the file it belongs to; `name` is the op without namespace `aten.`, overload and trailing underscore, so
one rule serves `add`, `add_` and every overload. Ops of other namespaces are named whole: `mylib.myop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...subnet import Role
from ..slots import Axis, Slots

Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Value:
    """A tensor in the graph: its shape, the slots of its axes, and its name if it is a parameter or buffer."""

    shape: tuple[int, ...]
    axes: Axes
    name: str | None = None


@dataclass(frozen=True)
class Call:
    """One op as a rule sees it.

    Attributes:
        slots: where to tie and fix.
        args: the op's arguments by the names of its schema, tensors as `Value`, defaults filled in.
        shapes: the shapes of the outputs.
        roles: what each parameter or buffer is to its layer; the first to claim one wins.
        sizes: which axes the sizes count that the calling module keeps as attributes.
    """

    slots: Slots
    path: str
    op: str
    args: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    roles: dict[str, Role]
    sizes: dict[tuple[str, str], Axes]

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
        """Note what a parameter or buffer is to the layer that reads it."""
        if value is not None and value.name is not None:
            self.roles.setdefault(value.name, role)

    def keeps(self, **sizes: Axis | Axes) -> None:
        """Note attributes by which a module of this kind keeps the sizes of these axes."""
        for name, axes in sizes.items():
            self.sizes[self.path, name] = axes if isinstance(axes, tuple) else (axes,)

    def reads(self, value: Value, dim: int, layer: Axis) -> Axis:
        """Tie an axis of the layer's own tensor to the axis it reads."""
        return self.slots.tie(value.axes[dim], layer, "reads channels that are fixed, such as the model's input")


Rule = Callable[[Call], Axes | list[Axes]]
RULES: dict[str, Rule] = {}
"""The table: op name -> rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter the decorated function into the table under each of `names`."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register

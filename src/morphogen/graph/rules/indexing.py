"""Positions taken by index: the axis that is indexed stays whole, the others go on."""

from __future__ import annotations

from ...dense.subnet import Role
from ..slots import Axis
from .table import Axes, Call, Value, rule


@rule("index", "_unsafe_index")
def index(call: Call) -> Axes:
    """x[..., indices, ...] with tensors as indices."""
    x, indices = call.input, call["indices"]
    (shape,) = call.shapes
    places = [i for i, each in enumerate(indices) if each is not None]
    for i in places:
        call.slots.fix(x.axes[i], "taken by index")
    for value in call.values():
        if value is not x:
            for axis in value.axes:
                call.slots.fix(axis, "used as index")
    kept = [axis for i, axis in enumerate(x.axes) if i not in places]
    if len(shape) != len(kept) + max(len(indices[i].shape) for i in places):  # a mask over several axes
        for axis in x.axes:
            call.slots.fix(axis, "taken by a mask")
        return (None,) * len(shape)
    new: list[Axis] = [None] * (len(shape) - len(kept))
    # The indexed axes come where the first was, in front where others stand between them.
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    return (*kept[:first], *new, *kept[first:])


@rule("index_select")
def index_select(call: Call) -> Axes:
    """Positions of one axis."""
    axes = list(call.input.axes)
    call.slots.fix(axes[call["dim"]], "taken by index")
    axes[call["dim"]] = None
    return tuple(axes)


@rule("gather", "take_along_dim", "scatter", "scatter_add", "index_copy", "index_add", "index_put", "_index_put_impl")
def gather(call: Call) -> Axes:
    """Positions of every axis by index."""
    for value in call.values():
        for axis in value.axes:
            call.slots.fix(axis, f"taken by index ({call.op})")
    (shape,) = call.shapes
    return (None,) * len(shape)


@rule("meshgrid", "one_hot", "bincount", "bucketize", "searchsorted")
def positions(call: Call) -> Axes | list[Axes]:
    """Tables made of positions."""
    for value in call.values():
        for axis in value.axes:
            call.slots.fix(axis, f"made into a table by {call.op}")
    axes: list[Axes] = [(None,) * len(shape) for shape in call.shapes]
    return axes[0] if len(axes) == 1 else axes


@rule("embedding")
def embedding(call: Call) -> Axes:
    """One row of a table for each index."""
    table, indices = call["weight"], call["indices"]
    call.slots.fix(table.axes[0], "taken by index")
    call.role(table, Role("direct"))
    call.keeps(embedding_dim=table.axes[1])
    return (*_plain(call, indices), table.axes[1])


def _plain(call: Call, value: Value) -> Axes:
    for axis in value.axes:
        call.slots.fix(axis, "used as index")
    return (None,) * len(value.shape)

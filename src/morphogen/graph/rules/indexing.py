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


@rule("gather", "scatter", "scatter_add", "scatter_reduce", "index_copy", "index_add")
def gather(call: Call) -> Axes:
    """Positions along one axis by index; the tensors go side by side along the others.

    The axis stays whole, and so do others where one tensor is shorter than another.
    """
    dim, values = call["dim"] % max(len(call.input.shape), 1), list(call.values())
    (shape,) = call.shapes
    axes: list[Axis] = [None] * len(shape)
    whole = [value for value in values if len(value.shape) == len(shape)]
    for i in range(len(shape)):
        met = [value.axes[i] for value in whole]
        if i == dim or len({value.shape[i] for value in whole}) > 1:
            for axis in met:
                call.slots.fix(axis, f"taken by index ({call.op})")
            continue
        axes[i] = met[0]
        for axis in met[1:]:
            axes[i] = call.slots.tie(axes[i], axis, "meets an axis of fixed size")
    for value in values:
        if len(value.shape) != len(shape):  # the index of `index_copy`
            call.slots.fix(value.axes[0] if value.axes else None, f"taken by index ({call.op})")
    return tuple(axes)


@rule("take_along_dim", "index_put", "_index_put_impl")
def taken(call: Call) -> Axes:
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

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


@rule("index_fill", "slice_scatter", "select_scatter")
def written(call: Call) -> Axes:
    """Some positions of one axis are given other values; that axis stays whole."""
    x, dim = call.input, call["dim"] % len(call.input.shape)
    call.slots.fix(x.axes[dim], f"written to by index ({call.op})")
    for place in ("start", "end", "step"):
        for number in call.numbers(call.args.get(place)):
            call.counts(number, None)
    if "index" in call.args and call.op == "index_fill":
        _plain(call, call["index"])
    axes: list[Axis] = [None if i == dim else axis for i, axis in enumerate(x.axes)]
    source = call.args.get("src")
    if source is not None:
        given = list(source.axes)
        if call.op == "slice_scatter":
            call.slots.fix(given.pop(dim), f"written by index ({call.op})")
        for i, axis in zip([i for i in range(len(axes)) if i != dim], given, strict=True):
            axes[i] = call.slots.tie(axes[i], axis, "meets an axis of fixed size")
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


@rule("index_put", "_index_put_impl")
def put(call: Call) -> Axes:
    """x[..., indices, ...] = values: the axes without an index go on, and meet those of the values."""
    x, indices, values = call.input, call["indices"], call["values"]
    places = [i for i, each in enumerate(indices) if each is not None]
    one_each = all(len(indices[i].shape) == 1 for i in places)
    if not places or not one_each or places != list(range(places[0], places[-1] + 1)):
        return _taken(call)
    for value in (value for value in call.values() if value is not x and value is not values):
        for axis in value.axes:
            call.slots.fix(axis, "used as index")
    for i in places:
        call.slots.fix(x.axes[i], f"taken by index ({call.op})")
    first, behind = places[0], places[-1] + 1
    shape = (*x.shape[:first], max(indices[i].shape[0] for i in places), *x.shape[behind:])
    met = call.meet([(shape, (*x.axes[:first], None, *x.axes[behind:])), (values.shape, values.axes)])
    return (*met[:first], *(None,) * len(places), *met[first + 1 :])


@rule("masked_scatter")
def written_by_mask(call: Call) -> Axes:
    """Positions of every axis by a mask."""
    return _taken(call)


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


@rule("embedding_bag")
def embedding_bag(call: Call) -> list[Axes]:
    """A sum, mean or maximum of rows of a table for each bag of indices; the other results are about the bags."""
    table = call["weight"]
    call.slots.fix(table.axes[0], "taken by index")
    call.role(table, Role("direct"))
    call.keeps(embedding_dim=table.axes[1])
    for value in call.values():
        if value is not table:
            _plain(call, value)
    features = (None, table.axes[1])
    largest = call["mode"] == 2  # which has the places of the maxima too
    return [features, *(features if largest and len(s) == 2 else (None,) * len(s) for s in call.shapes[1:])]


def _plain(call: Call, value: Value) -> Axes:
    for axis in value.axes:
        call.slots.fix(axis, "used as index")
    return (None,) * len(value.shape)


def _taken(call: Call) -> Axes:
    for value in call.values():
        for axis in value.axes:
            call.slots.fix(axis, f"taken by index ({call.op})")
    (shape,) = call.shapes
    return (None,) * len(shape)

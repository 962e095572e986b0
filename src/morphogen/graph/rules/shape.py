"""Views, permutations, concatenation, cutting."""

from __future__ import annotations

import torch

from ..axes import reshape
from .table import Axes, Call, rule


@rule(*"view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as".split())
def reshaped(call: Call) -> Axes:
    """Views that merge and split axes."""
    return reshape(call.slots, call.input.shape, call.input.axes, call.shapes[0])


@rule("permute")
def permute(call: Call) -> Axes:
    """Axes in the given order."""
    return tuple(call.input.axes[d] for d in call["dims"])


@rule("numpy_T")
def reverse(call: Call) -> Axes:
    """All axes in reverse order."""
    return call.input.axes[::-1]


@rule("transpose", "swapaxes", "t", "mT")
def transpose(call: Call) -> Axes:
    """Two axes swapped; `t` and `mT` swap the last two."""
    axes = list(call.input.axes)
    if len(axes) > 1:
        a, b = call.args.get("dim0", -2), call.args.get("dim1", -1)
        axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


@rule("movedim", "moveaxis")
def movedim(call: Call) -> Axes:
    """Axes moved to new places."""
    marked = torch.empty(tuple(range(2, 2 + len(call.input.axes))), device="meta")  # each axis marked by its size
    moved = marked.movedim(call["source"], call["destination"])
    return tuple(call.input.axes[size - 2] for size in moved.shape)


@rule("expand", "expand_as", "broadcast_to")
def expand(call: Call) -> Axes:
    """Axes of size 1 stretched, by `expand_as` to those of another tensor; the others stay."""
    x, (shape,) = call.input, call.shapes
    lead = len(shape) - len(x.shape)
    other = call.args.get("other")
    stretched = other.axes if other is not None else (None,) * len(shape)
    return stretched[:lead] + tuple(
        a if x.shape[i] == shape[lead + i] else stretched[lead + i] for i, a in enumerate(x.axes)
    )


@rule("repeat", "tile")
def repeat(call: Call) -> Axes:
    """Axes repeated end to end."""
    x, (shape,) = call.input, call.shapes
    lead = len(shape) - len(x.shape)
    return (None,) * lead + tuple(
        None if a is None else a.repeat(shape[lead + i] // x.shape[i]) for i, a in enumerate(x.axes)
    )


@rule("cat", "concat")
def cat(call: Call) -> Axes:
    """Tensors end to end along one axis; every other axis is alive together."""
    values = [v for v in call.values() if v.shape != (0,)]
    dim = call["dim"] % len(values[0].shape)
    axes = list(values[0].axes)
    for value in values[1:]:
        for i, axis in enumerate(value.axes):
            if i != dim:
                axes[i] = call.slots.tie(axes[i], axis, "meets an axis of fixed size")
    if any(v.axes[dim] is not None for v in values):
        parts = [torch.zeros(v.shape[dim], dtype=torch.long) if (a := v.axes[dim]) is None else a for v in values]
        axes[dim] = torch.cat(parts)
    return tuple(axes)


@rule("stack")
def stack(call: Call) -> Axes:
    """Tensors side by side along a new axis."""
    values = list(call.values())
    axes = list(values[0].axes)
    for value in values[1:]:
        axes = [call.slots.tie(a, b, "meets an axis of fixed size") for a, b in zip(axes, value.axes, strict=True)]
    dim = call["dim"] % (len(axes) + 1)
    return (*axes[:dim], None, *axes[dim:])


@rule("chunk")
def chunk(call: Call) -> list[Axes]:
    """Equal parts; the same positions of every part go together, so that the parts stay equal."""
    x = call.input
    dim = call["dim"] % len(x.shape)
    axis = x.axes[dim]
    if axis is not None and len({shape[dim] for shape in call.shapes}) == 1:
        table = axis.view(len(call.shapes), -1)
        call.slots.tie(axis, table[0].expand_as(table).reshape(-1), "")
        return [(*x.axes[:dim], part, *x.axes[dim + 1 :]) for part in table]
    return _cut(call, dim, "cut into unequal parts")


@rule("glu")
def glu(call: Call) -> Axes:
    """The first half gated by the second; the same positions of both go together."""
    x, dim = call.input, call["dim"] % len(call.input.shape)
    axis = x.axes[dim]
    if axis is not None:
        table = axis.view(2, -1)
        call.slots.tie(table[1], table[0], "")
        axis = table[0]
    return (*x.axes[:dim], axis, *x.axes[dim + 1 :])


@rule("split", "split_with_sizes", "unbind", "tensor_split", "unsafe_split", "unsafe_chunk")
def cut(call: Call) -> list[Axes]:
    """Parts whose sizes are written in the model's code: the axis that is cut stays whole."""
    dim = call["dim"] % len(call.input.shape)
    if call.op == "unbind":
        call.slots.fix(call.input.axes[dim], "taken apart by unbind")
        return [tuple(a for i, a in enumerate(call.input.axes) if i != dim)] * len(call.shapes)
    return _cut(call, dim, f"cut at fixed positions by {call.op}")


def _cut(call: Call, dim: int, reason: str) -> list[Axes]:
    axes = list(call.input.axes)
    call.slots.fix(axes[dim], reason)
    axes[dim] = None
    return [tuple(axes)] * len(call.shapes)


@rule("slice", "narrow")
def slice_(call: Call) -> Axes:
    """A range of one axis; the axis stays whole unless all of it is taken."""
    x, (shape,) = call.input, call.shapes
    dim = call["dim"] % len(x.shape)
    return x.axes if shape[dim] == x.shape[dim] else _cut(call, dim, "sliced at fixed positions")[0]


@rule("select")
def select(call: Call) -> Axes:
    """One position of one axis, which stays whole."""
    dim = call["dim"] % len(call.input.shape)
    call.slots.fix(call.input.axes[dim], "one position is picked by its index")
    return tuple(a for i, a in enumerate(call.input.axes) if i != dim)


@rule("flip", "roll")
def moved_along(call: Call) -> Axes:
    """Positions moved along an axis, which stays whole."""
    axes = list(call.input.axes)
    for dim in call["dims"] or range(len(axes)):
        call.slots.fix(axes[dim], f"reordered by {call.op}")
        axes[dim] = None
    return tuple(axes)

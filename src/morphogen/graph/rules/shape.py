"""Views, permutations, concatenation, cutting."""

from __future__ import annotations

import torch

from ..numbers import Number, factors_of
from .table import Axes, Call, rule


@rule(*"flatten squeeze unsqueeze view_as reshape_as".split())
def joined(call: Call) -> Axes:
    """Views whose sizes PyTorch computes."""
    return call.view(call.input, call.shapes[0])


@rule("view", "reshape", "_unsafe_view")
def reshaped(call: Call) -> Axes:
    """Views that fold and unfold axes, to sizes that the code gives."""
    return call.view(call.input, call.shapes[0], call.numbers(call["size"] if "size" in call.args else call["shape"]))


@rule("unflatten")
def unflatten(call: Call) -> Axes:
    """One axis unfolded into sizes that the code gives."""
    x, (shape,) = call.input, call.shapes
    numbers: list[int | None] = [None] * len(shape)
    dim = call["dim"] % len(x.shape)
    numbers[dim : dim + len(call["sizes"])] = call.numbers(call["sizes"])
    return call.view(x, shape, numbers)


@rule("permute")
def permute(call: Call) -> Axes:
    """Axes in the given order."""
    return tuple(call.input.axes[d] for d in call["dims"])


@rule("numpy_T")
def reverse(call: Call) -> Axes:
    """All axes in reverse order."""
    return call.input.axes[::-1]


@rule("transpose", "swapaxes", "t", "mT", "matrix_H", "mH")
def transpose(call: Call) -> Axes:
    """Two axes swapped; `t`, `mT` and `matrix_H` swap the last two."""
    axes = list(call.input.axes)
    if len(axes) > 1:
        a, b = (call.args.get(f"dim{i}", call.args.get(f"axis{i}", i - 2)) for i in (0, 1))
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
    """Axes of size 1 stretched, to the sizes that the code gives or to those of another tensor; the others stay."""
    x, (shape,) = call.input, call.shapes
    lead = len(shape) - len(x.shape)
    if "other" in call.args:
        numbers: list[int | None] = [None] * len(shape)
        stretched = call["other"].axes
    else:
        numbers = call.numbers(call["size"])
        stretched = call.sized(shape, numbers)
    axes = list(stretched[:lead])
    for i, axis in enumerate(x.axes, lead):
        if x.shape[i - lead] == shape[i]:
            call.counts(numbers[i], axis)
            axes.append(axis)
        else:
            axes.append(stretched[i])
    return tuple(axes)


@rule("repeat", "tile")
def repeat(call: Call) -> Axes:
    """Axes repeated end to end; one of size 1, as often as the code says."""
    x, (shape,) = call.input, call.shapes
    lead = len(shape) - len(x.shape)
    numbers = call.numbers(call["repeats"] if "repeats" in call.args else call["dims"])
    if len(numbers) < len(shape):  # `tile` leaves the first axes alone
        return (None,) * lead + tuple(
            None if a is None else a.repeat(shape[lead + i] // x.shape[i]) for i, a in enumerate(x.axes)
        )
    axes = []
    for new, number, old, axis in zip(shape, numbers, (1,) * lead + x.shape, (None,) * lead + x.axes, strict=True):
        times = new // old
        if not isinstance(number, Number) or times == 1:
            axes.append(None if axis is None else axis.repeat(times))
            continue
        again = call.slots.fresh(times)  # counted by the number; each of these is the whole axis once more
        call.counts(number, again)
        axes.append(again.repeat_interleave(old) if axis is None else call.slots.multiply([again, axis]))
    return tuple(axes)


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Axes:
    """Every position several times, one beside the other."""
    x, (shape,) = call.input, call.shapes
    if not isinstance(call.args.get("repeats"), int) or call.args.get("dim") is None:
        for axis in x.axes:
            call.slots.fix(axis, "repeated as often as a tensor says")
        return (None,) * len(shape)
    axes = list(x.axes)
    axis = axes[call["dim"]]
    axes[call["dim"]] = None if axis is None else axis.repeat_interleave(call["repeats"])
    return tuple(axes)


@rule("cat", "concat")
def cat(call: Call) -> Axes:
    """Tensors end to end along one axis; every other axis is alive together."""
    values = [v for v in call.values() if v.shape != (0,)] or list(call.values())
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


@rule("split", "split_with_sizes", "unsafe_split")
def split(call: Call) -> list[Axes]:
    """Parts of the sizes that the code gives."""
    x, dim = call.input, call["dim"] % len(call.input.shape)
    axis, sizes = x.axes[dim], [shape[dim] for shape in call.shapes]
    if axis is None:
        return [x.axes] * len(sizes)
    given = call["split_sizes"] if "split_sizes" in call.args else call["split_size"]
    numbers = call.numbers(given)
    parts = list(axis.split(sizes))
    if isinstance(given, int):  # as many parts as there are then: they must stay equal
        if len(set(sizes)) > 1:
            return _cut(call, dim, "cut into unequal parts")
        for part in parts[1:]:
            call.slots.tie(part, parts[0], "")
    for number, part in zip(numbers, parts, strict=False):
        if number is None:
            call.slots.fix(part, f"cut at fixed positions by {call.op}")
        call.counts(number, part)
    return [(*x.axes[:dim], part, *x.axes[dim + 1 :]) for part in parts]


@rule("tensor_split", "unsafe_chunk")
def cut(call: Call) -> list[Axes]:
    """Parts whose sizes are not followed."""
    return _cut(call, call["dim"] % len(call.input.shape), f"cut at fixed positions by {call.op}")


@rule("unbind")
def unbind(call: Call) -> list[Axes]:
    """Every position by itself: the axis stays whole."""
    x, dim = call.input, call["dim"] % len(call.input.shape)
    call.slots.fix(x.axes[dim], "taken apart by unbind")
    return [tuple(a for i, a in enumerate(x.axes) if i != dim)] * len(call.shapes)


def _cut(call: Call, dim: int, reason: str) -> list[Axes]:
    axes = list(call.input.axes)
    call.slots.fix(axes[dim], reason)
    axes[dim] = None
    return [tuple(axes)] * len(call.shapes)


@rule("slice", "narrow")
def slice_(call: Call) -> Axes:
    """A range of one axis, from and to positions that the code gives."""
    x, (shape,) = call.input, call.shapes
    dim = call["dim"] % len(x.shape)
    axis, size = x.axes[dim], x.shape[dim]
    if axis is None or shape[dim] == size:
        return x.axes
    start = call["start"] or 0
    end = start + call["length"] if call.op == "narrow" else size if call["end"] is None else min(call["end"], size)
    step = call.args.get("step", 1)
    if step > 1:
        if size % step:
            return _cut(call, dim, "every so many positions are taken")[0]
        runs = axis.view(-1, step)
        call.slots.tie(runs, runs[:, :1].expand_as(runs), "")
    for place, default in ((start, 0), (end, size)):
        if place == default:
            continue
        (number,) = call.numbers(place)
        before, behind = (axis[:place], axis[place:]) if place > 0 else (None, axis[place:])
        if number is None:
            call.slots.fix(axis, "sliced at positions that are not followed")
        elif place > 0:
            call.counts(number, before)
            # A longer input would be given more of a table.
            if call.counting.stays(number) or (x.origin is not None and not isinstance(number, Number)):
                call.slots.fix(behind, "a table read as far as the input is long")
        else:
            length = -number  # of what is behind
            if any(int(factor) < 0 for factor in factors_of(length)):  # a difference below 0
                call.slots.fix(behind, "sliced at positions that are not followed")
            else:
                call.counts(length, behind)
    return (*x.axes[:dim], axis[start:end:step] if end > 0 else axis[start:][:end:step], *x.axes[dim + 1 :])


@rule("select")
def select(call: Call) -> Axes:
    """One position of one axis, which with all before it (behind it, if counted from the end) stays."""
    x, index = call.input, call["index"]
    dim = call["dim"] % len(x.shape)
    axis = x.axes[dim]
    if axis is not None:
        call.slots.fix(axis[: index + 1] if index >= 0 else axis[index:], "one position is picked by its index")
    return tuple(a for i, a in enumerate(x.axes) if i != dim)


@rule("flip", "roll", "rot90")
def moved_along(call: Call) -> Axes:
    """Positions moved along an axis, which stays whole."""
    axes = list(call.input.axes)
    for dim in call["dims"] or range(len(axes)):
        call.slots.fix(axes[dim], f"reordered by {call.op}")
        axes[dim] = None
    return tuple(axes)


@rule("view_as_complex")
def view_as_complex(call: Call) -> Axes:
    """The last axis holds real and imaginary parts, and goes."""
    call.slots.fix(call.input.axes[-1], "made into complex numbers")
    return call.input.axes[:-1]


@rule("view_as_real")
def view_as_real(call: Call) -> Axes:
    """Real and imaginary parts on a new last axis."""
    return (*call.input.axes, None)

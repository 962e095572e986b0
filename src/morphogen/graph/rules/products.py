"""Products of matrices and tensors: what is contracted is alive together."""

from __future__ import annotations

from ...dense.subnet import Role
from ..slots import Axis
from .table import Axes, Call, Value, rule


def _transposed(value: Value) -> Value:
    return Value(value.shape[::-1], value.axes[::-1], value.origin)


def multiply(call: Call, left: Value, right: Value) -> Axes:
    """(..., n, k) times (..., k, m)."""
    _weigh(call, right, left, Role("weight", outs=(-1,), ins=(-2,)))
    if right.origin is None:
        _weigh(call, left, right, Role("weight", outs=(-2,), ins=(-1,)))
    call.slots.tie(left.axes[-1], right.axes[max(-2, -len(right.shape))], "multiplied with a fixed axis")
    batch = call.meet([(value.shape[:-2], value.axes[:-2]) for value in (left, right)])
    rows = left.axes[-2:-1]
    columns = right.axes[-1:] if len(right.shape) > 1 else ()
    return (*batch, *rows, *columns)


def _weigh(call: Call, weight: Value, other: Value, role: Role) -> None:
    """Note what a matrix of parameters is to what it is multiplied with; `role` is that of its last two axes."""
    ndim = len(weight.shape)
    if ndim == 1:
        call.role(weight, Role("weight", outs=(), ins=(0,)))
        return
    before = range(ndim - 2)
    apart = tuple(dim for dim in before if ndim - dim <= len(other.shape) and other.shape[dim - ndim] != 1)
    more = tuple(dim for dim in before if dim not in apart)
    outs, ins = (tuple(axis + ndim for axis in axes) for axes in (role.outs, role.ins))
    call.role(weight, Role("weight", outs=(*more, *outs), ins=ins, batch=apart))


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner")
def matmul(call: Call) -> Axes:
    """The last axis of the one and the last but one of the other are contracted, the axes before meet."""
    left, right = call.values()
    return multiply(call, left, _transposed(right) if call.op == "inner" else right)


@rule("_grouped_mm", "transformers.grouped_mm_fallback")
def grouped_matmul(call: Call) -> Axes:
    """Rows (T, k), sorted by expert, times the matrices (experts, k, m) to (T, m)."""
    rows, experts, *rest = call.values()
    for axis in (*rows.axes[:-1], *experts.axes[:-2], *(axis for value in rest for axis in value.axes)):
        call.slots.fix(axis, "sorted by expert")
    call.slots.tie(rows.axes[-1], experts.axes[-2], "multiplied with a fixed axis")
    call.role(experts, Role("weight", outs=(2,), ins=(1,), batch=(0,)))
    (shape,) = call.shapes
    return (*(None,) * (len(shape) - 1), experts.axes[-1])


@rule("_cdist_forward")
def distances(call: Call) -> Axes:
    """The distance of every row of (..., n, k) from every row of (..., m, k)."""
    left, right = call["x1"], call["x2"]
    call.slots.tie(left.axes[-1], right.axes[-1], "compared with a fixed axis")
    batch = call.meet([(value.shape[:-2], value.axes[:-2]) for value in (left, right)])
    return (*batch, left.axes[-2], right.axes[-2])


@rule("dist")
def distance(call: Call) -> Axes:
    """The distance of one tensor from another, position by position, as one number."""
    call.meet([(value.shape, value.axes) for value in call.values()])
    return ()


@rule("_linalg_solve_ex")
def solve(call: Call) -> list[Axes]:
    """The solution of A (..., n, n) X = B (..., n, k), and what A was taken apart into."""
    left, right = call["A"], call["B"]
    plain = len(right.shape) == len(left.shape) and call["left"]
    for axis in (*left.axes[-2:], right.axes[-2]) if plain else (*left.axes, *right.axes):
        call.slots.fix(axis, "a system of equations")
    if not plain:
        return [(None,) * len(shape) for shape in call.shapes]
    batch = call.meet([(value.shape[:-2], value.axes[:-2]) for value in (left, right)])
    own = left.axes[:-2]
    return [(*batch, None, right.axes[-1]), *((*own, *(None,) * (len(s) - len(own))) for s in call.shapes[1:])]


@rule("outer", "ger")
def outer(call: Call) -> Axes:
    """Every position of the one with every position of the other."""
    left, right = call.values()
    return (*left.axes, *right.axes)


@rule("addmm", "baddbmm", "addbmm", "addmv")
def add_product(call: Call) -> Axes:
    """A product added to a tensor."""
    added, left, right = call.values()
    axes = multiply(call, left, right)
    (shape,) = call.shapes
    return call.meet([(added.shape, added.axes), (shape, axes)])


@rule("einsum")
def einsum(call: Call) -> Axes:
    """What has the same letter is alive together."""
    inputs, _, output = call["equation"].replace(" ", "").partition("->")
    values = list(call.values())
    of: dict[str, Axis] = {}
    sizes: dict[str, int] = {}
    dots: list[tuple[tuple[int, ...], Axes]] = []
    terms = inputs.split(",")
    for term, value in zip(terms, values, strict=True):
        head, ellipsis, tail = term.partition("...")
        middle = len(value.shape) - len(head) - len(tail)
        if ellipsis:
            dots.append((value.shape[len(head) :][:middle], value.axes[len(head) :][:middle]))
        places = [*range(len(head)), *range(len(value.shape) - len(tail), len(value.shape))]
        for letter, i in zip(head + tail, places, strict=True):
            size, axis = value.shape[i], value.axes[i]
            if letter not in of or sizes[letter] == 1:
                of[letter], sizes[letter] = axis, size
            elif size > 1:
                of[letter] = call.slots.tie(of[letter], axis, "multiplied with a fixed axis")
    if "->" not in call["equation"]:
        letters = "".join(term.replace("...", "") for term in terms)
        output = "..." * bool(dots) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    for number, (term, value) in enumerate(zip(terms, values, strict=True)):
        others = "".join(other for i, other in enumerate(terms) if i != number)
        if "..." not in term and all((other is value) == (other.origin is not None) for other in values):
            outs = tuple(i for i, letter in enumerate(term) if letter in output and letter not in others)
            ins = tuple(i for i, letter in enumerate(term) if letter not in output)
            batch = tuple(i for i, letter in enumerate(term) if letter in output and letter in others)
            if ins:
                call.role(value, Role("weight", outs, ins, batch))
    head, ellipsis, tail = output.partition("...")
    middle = call.meet(dots) if ellipsis else ()
    return (*(of[c] for c in head), *middle, *(of[c] for c in tail))


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Axes:
    """Queries (..., H, L, E), keys (..., H, S, E) and values (..., H, S, V) to (..., H, L, V).

    Heads may leave. The positions that are softmaxed, S, may not; nor does it matter for the function which of the
    positions E of a head do, but the default scale, 1 / sqrt(E), follows their number.
    """
    query, key, value = call["query"], call["key"], call["value"]
    call.slots.tie(query.axes[-1], key.axes[-1], "multiplied with a fixed axis")
    for axis in (key.axes[-2], value.axes[-2]):
        call.slots.fix(axis, "softmax along it")
    heads = [value.axes[:-2] for value in (query, key, value)]
    if call["enable_gqa"]:  # each key and value head serves several query heads
        times = query.shape[-3] // key.shape[-3]
        heads = [heads[0], *((*h[:-1], None if h[-1] is None else h[-1].repeat_interleave(times)) for h in heads[1:])]
    axes = call.meet([(query.shape[:-2], h) for h in heads])
    mask = call["attn_mask"]
    if mask is None:
        return (*axes, query.axes[-2], value.axes[-1])
    weights = (*query.shape[:-1], key.shape[-2]), (*axes, query.axes[-2], None)
    return (*call.meet([weights, (mask.shape, mask.axes)])[:-1], value.axes[-1])

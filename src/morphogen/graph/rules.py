"""One rule per ATen op: how its output's axes follow from its inputs', and which positions it ties.

A rule reads a `Call` and returns the axes of the output (a tuple, one `Axis` per dimension; a list of such
tuples for an op with several outputs). To add one, decorate a function with `rule("name")` and place it in
the section it belongs to; `name` is the op without namespace `aten.`, overload and trailing underscore, so
one rule serves `add`, `add_` and every overload. Ops of other namespaces are named whole: `mylib.myop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from ..subnet import Role
from .axes import reshape, split
from .slots import Axis, Slots

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


# --- every position stays where it is ---------------------------------------------------------------------


@rule(
    *"""
    abs alias alpha_dropout bernoulli celu clamp clamp_max clamp_min clone contiguous cos detach dropout elu erf exp
    expm1 feature_alpha_dropout feature_dropout gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu lift_fresh
    lift_fresh_copy log log1p log_sigmoid log_softmax logical_not mish native_dropout neg ones_like rand_like
    randn_like reciprocal relu relu6 rsqrt selu sigmoid sign silu sin softmax softplus softshrink sqrt square
    tanh tanhshrink threshold to type_as zeros_like _to_copy empty_like full_like""".split()
)
def keep(call: Call) -> Axes | list[Axes]:
    """Activations, dropout, casts, copies."""
    return call.input.axes if len(call.shapes) == 1 else [call.input.axes] * len(call.shapes)


@rule(*"add sub rsub mul div maximum minimum pow where lerp addcmul addcdiv fmod remainder atan2 hypot".split())
@rule(*"copy eq ne lt le gt ge logical_and logical_or masked_fill".split())
def broadcast(call: Call) -> Axes:
    """Arithmetic between tensors: axes that meet are alive together."""
    (shape,) = call.shapes
    axes: list[Axis] = [None] * len(shape)
    for i, size in enumerate(shape):
        back = i - len(shape)
        met = [v.axes[back] for v in call.values() if len(v.shape) >= -back and v.shape[back] == size != 1]
        for axis in met[1:]:
            met[0] = call.slots.tie(met[0], axis, "meets an axis of fixed size")
        axes[i] = met[0] if met else None
    return tuple(axes)


@rule("_assert_tensor_metadata", "_assert_scalar", "sym_size")
def assertion(call: Call) -> Axes | list[Axes]:
    """Checks without an output."""
    return []


@rule(*"arange bernoulli_p empty eye full linspace normal ones rand randint randn randperm scalar_tensor zeros".split())
@rule("new_empty", "new_full", "new_ones", "new_zeros")
def create(call: Call) -> Axes:
    """New tensors: their sizes are written in the model's code, so whatever meets them stays whole."""
    (shape,) = call.shapes
    return (None,) * len(shape)


# --- layers -----------------------------------------------------------------------------------------------


def convolve(call: Call, out_axis: int, in_axis: int) -> Axes:
    """The channels of a convolution; `out_axis` and `in_axis` of its weight (transposed ones swap them)."""
    x, weight, groups = call["input"], call["weight"], call["groups"]
    slots, channel = call.slots, -(len(weight.shape) - 1)
    first, second = weight.axes[0], weight.axes[1]
    blockwise = False
    for axis in weight.axes[2:]:
        slots.fix(axis, "")
    if groups == 1:
        call.reads(x, channel, weight.axes[in_axis])
        out = weight.axes[out_axis]
    elif x.axes[channel] is None or first is None:
        for axis in (first, second):
            slots.fix(axis, "a grouped convolution of fixed channels")
        slots.fix(x.axes[channel], "a grouped convolution with fixed weights")
        out = None
    else:
        size = weight.shape[0] // groups
        which, line = split(slots, x.axes[channel], [groups, x.shape[channel] // groups])
        blockwise = which == 0
        own = first.view(groups, size)
        if blockwise:
            call.keeps(groups=line)
            slots.tie(own.reshape(-1), line[:, None].expand(groups, size).reshape(-1), "")
            slots.fix(second, "inside one group of a convolution that loses whole groups")
        elif out_axis == 0:
            slots.tie(own.reshape(-1), own[0].expand(groups, size).reshape(-1), "")
            slots.tie(second, line, "reads fixed channels")
        else:
            slots.tie(own.reshape(-1), line.expand(groups, size).reshape(-1), "")
        if out_axis == 0:
            out = first
        elif blockwise:
            out = line[:, None].expand(groups, weight.shape[1]).reshape(-1)
        else:
            out = None if second is None else second.expand(groups, weight.shape[1]).reshape(-1)
    call.role(weight, Role("weight", out_axis, in_axis, groups, blockwise))
    call.keeps(in_channels=x.axes[channel], out_channels=out)
    if call.args.get("bias") is not None:
        out = slots.tie(out, call["bias"].axes[0], "bias of fixed channels")
        call.role(call["bias"], Role("bias"))
    (shape,) = call.shapes
    axes = list(x.axes[:channel]) + [None] * -channel
    axes[len(shape) + channel] = out
    return tuple(axes)


@rule("conv1d", "conv2d", "conv3d")
def convolution(call: Call) -> Axes:
    """Plain, grouped, depthwise and dilated convolutions; weight (out, in / groups, *kernel)."""
    return convolve(call, out_axis=0, in_axis=1)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(call: Call) -> Axes:
    """Transposed convolutions; weight (in, out / groups, *kernel)."""
    return convolve(call, out_axis=1, in_axis=0)


@rule("linear")
def linear(call: Call) -> Axes:
    """x (..., in) and weight (out, in) to (..., out)."""
    x, weight, bias = call["input"], call["weight"], call["bias"]
    call.reads(x, -1, weight.axes[1])
    out = weight.axes[0]
    call.role(weight, Role("weight"))
    call.keeps(in_features=weight.axes[1], out_features=out)
    if bias is not None:
        out = call.slots.tie(out, bias.axes[0], "bias of fixed channels")
        call.role(bias, Role("bias"))
    return (*x.axes[:-1], out)


@rule("batch_norm", "instance_norm")
def channel_norm(call: Call) -> Axes:
    """Normalisation with statistics and an affine map for each channel (axis 1)."""
    axis = call["input"].axes[1]
    kinds = {"weight": "scale", "bias": "shift", "running_mean": "mean", "running_var": "variance"}
    for name, kind in kinds.items():
        if call[name] is not None:
            axis = call.reads(call["input"], 1, call[name].axes[0])
            call.role(call[name], Role(kind))
    call.keeps(num_features=axis)
    return (call["input"].axes[0], axis, *call["input"].axes[2:])


@rule("group_norm")
def group_norm(call: Call) -> Axes:
    """Normalisation over groups of channels, which leave whole where there are many."""
    x = call["input"]
    axis = x.axes[1]
    if axis is not None:
        which, line = split(call.slots, axis, [call["num_groups"], x.shape[1] // call["num_groups"]])
        call.keeps(num_channels=axis, **({"num_groups": line} if which == 0 else {}))
    for name, kind in {"weight": "scale", "bias": "shift"}.items():
        if call[name] is not None:
            axis = call.reads(x, 1, call[name].axes[0])
            call.role(call[name], Role(kind))
    return (x.axes[0], axis, *x.axes[2:])


@rule("layer_norm", "rms_norm")
def layer_norm(call: Call) -> Axes:
    """Normalisation over the last axes."""
    axes = list(call["input"].axes)
    for name, kind in {"weight": "scale", "bias": "shift"}.items():
        value = call.args.get(name)
        if value is not None:
            for dim in range(-len(value.shape), 0):
                axes[dim] = call.reads(call["input"], dim, value.axes[dim])
            call.role(value, Role(kind))
    call.keeps(normalized_shape=tuple(axes[-len(call["normalized_shape"]) :]))
    return tuple(axes)


@rule("prelu", "_prelu_kernel")
def prelu(call: Call) -> Axes:
    """A learned slope, one for all channels or one for each (axis 1)."""
    x, weight = call["self"], call["weight"]
    if prod(weight.shape) > 1:
        call.reads(x, 1, weight.axes[0 if len(weight.shape) == 1 else 1])
        call.keeps(num_parameters=x.axes[1])
    return x.axes


@rule("matmul", "mm", "bmm")
def matmul(call: Call) -> Axes:
    """(..., n, k) times (..., k, m): the contracted axes are alive together."""
    left, right = call.values()
    call.slots.tie(left.axes[-1], right.axes[max(-2, -len(right.shape))], "multiplied with a fixed axis")
    (shape,) = call.shapes
    axes: list[Axis] = [None] * len(shape)
    if len(left.shape) > 1:
        axes[-2 if len(right.shape) > 1 else -1] = left.axes[-2]
    if len(right.shape) > 1:
        axes[-1] = right.axes[-1]
    for value in (left, right):
        for axis in value.axes[:-2]:
            call.slots.fix(axis, "a batch axis of a matrix product")
    return tuple(axes)


# --- space ------------------------------------------------------------------------------------------------


@rule(*[f"{kind}_pool{n}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3)])
@rule("max_pool2d_with_indices", "max_pool3d_with_indices")
@rule(
    *[
        f"upsample_{kind}"
        for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
    ]
)
@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d", "grid_sampler")
@rule("pad", "constant_pad_nd", *[f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)])
def spatial(call: Call) -> Axes | list[Axes]:
    """Pooling, resizing and padding: axes whose size changed are of fixed size, the others stay."""
    x = call.input
    results = [
        tuple(axis if size == new else None for axis, size, new in zip(x.axes, x.shape, shape, strict=True))
        for shape in call.shapes
    ]
    for axis, size, new in zip(x.axes, x.shape, call.shapes[0], strict=True):
        if size != new:
            call.slots.fix(axis, f"resized by {call.op}")
    return results if len(results) > 1 else results[0]


@rule(*"mean sum amax amin max min var std prod norm linalg_vector_norm var_mean logsumexp".split())
@rule(*"argmax argmin any all".split())
def reduce(call: Call) -> Axes | list[Axes]:
    """Reductions: the reduced axes go, the others stay. A mean over channels is then one over fewer."""
    x = call.input
    if sum(isinstance(value, Value) for value in call.args.values()) > 1:
        return broadcast(call)
    dims = call.args.get("dim")
    ndim = len(x.shape)
    gone = (
        set(range(ndim))
        if dims is None or dims == []
        else {d % max(ndim, 1) for d in (dims if isinstance(dims, (list, tuple)) else [dims])}
    )
    kept = [None if i in gone else axis for i, axis in enumerate(x.axes) if call.args.get("keepdim") or i not in gone]
    return tuple(kept) if len(call.shapes) == 1 else [tuple(kept)] * len(call.shapes)


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Axes:
    """(C r r, H, W) to (C, H r, W r): the r r channels of one output channel go together."""
    x, r = call.input, call["upscale_factor"]
    channels = x.shape[-3] // r**2
    axis = x.axes[-3]
    if axis is not None:
        table = axis.view(channels, r * r)
        call.slots.tie(axis, table[:, :1].expand(channels, r * r).reshape(-1), "")
        axis = table[:, 0]
    return (*x.axes[:-3], axis, None, None)


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Axes:
    """(C, H r, W r) to (C r r, H, W)."""
    x = call.input
    axis = x.axes[-3]
    return (*x.axes[:-3], None if axis is None else axis.repeat_interleave(call["downscale_factor"] ** 2), None, None)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Axes:
    """(groups, C / groups) transposed: the same positions of every group go together."""
    x, groups = call.input, call["groups"]
    axis = x.axes[1]
    if axis is not None:
        table = axis.view(groups, -1)
        call.slots.tie(axis, table[0].expand_as(table).reshape(-1), "")
        axis = table.t().reshape(-1)
    return (x.axes[0], axis, *x.axes[2:])


# --- shape ------------------------------------------------------------------------------------------------


@rule(*"view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as".split())
def reshaped(call: Call) -> Axes:
    """Views that merge and split axes."""
    return reshape(call.slots, call.input.shape, call.input.axes, call.shapes[0])


@rule("permute")
def permute(call: Call) -> Axes:
    """Axes in the given order."""
    return tuple(call.input.axes[d] for d in call["dims"])


@rule("transpose", "swapaxes", "t", "numpy_T")
def transpose(call: Call) -> Axes:
    """Two axes swapped; `t` swaps the only two there are."""
    axes = list(call.input.axes)
    if len(axes) > 1:
        a, b = call.args.get("dim0", 0), call.args.get("dim1", 1)
        axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


@rule("movedim", "moveaxis")
def movedim(call: Call) -> Axes:
    """Axes moved to new places."""
    marked = torch.empty(range(2, 2 + len(call.input.axes)), device="meta")  # each axis marked by its size
    moved = marked.movedim(call["source"], call["destination"])
    return tuple(call.input.axes[size - 2] for size in moved.shape)


@rule("expand", "expand_as", "broadcast_to")
def expand(call: Call) -> Axes:
    """Axes of size 1 stretched; the others stay."""
    x, (shape,) = call.input, call.shapes
    lead = len(shape) - len(x.shape)
    return (None,) * lead + tuple(a if x.shape[i] == shape[lead + i] else None for i, a in enumerate(x.axes))


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
    for dim in call["dims"]:
        call.slots.fix(axes[dim], f"reordered by {call.op}")
        axes[dim] = None
    return tuple(axes)

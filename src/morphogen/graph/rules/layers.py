"""Convolutions, linear layers, normalisation: ops that read parameters."""

from __future__ import annotations

from math import prod

from ...dense.subnet import Role
from ..axes import divide_groups
from ..numbers import Number, Times
from ..slots import Axis
from .table import Axes, Call, rule


def convolve(call: Call, out_axis: int, in_axis: int) -> Axes:
    """The channels of a convolution; `out_axis` and `in_axis` of its weight (transposed ones swap them)."""
    x, weight, groups = call["input"], call["weight"], call["groups"]
    slots, channel = call.slots, -(len(weight.shape) - 1)
    first, second = weight.axes[0], weight.axes[1]
    blockwise, ins = False, (in_axis,)
    spanned = _spanned(call)
    for dim in range(2, len(weight.shape)):
        if dim == spanned:
            ins = (dim,)
            slots.tie(x.axes[dim - len(weight.shape)], weight.axes[dim], "")
            call.keeps(kernel_size=weight.axes[2:])
        else:
            slots.fix(weight.axes[dim], "")
    single = tuple(weight.shape[:2]) == (groups, 1)  # each channel by itself
    if groups == 1:
        call.reads(x, channel, weight.axes[1 - out_axis])
        out = weight.axes[out_axis]
    elif x.axes[channel] is None or first is None or (not single and any(map(_is_product, call.numbers(groups)))):
        for axis in (first, second):
            slots.fix(axis, "a grouped convolution of fixed channels")
        slots.fix(x.axes[channel], "a grouped convolution with fixed weights")
        out = None
    else:
        size = weight.shape[0] // groups
        which, line = divide_groups(slots, x.axes[channel], groups)
        blockwise = which == 0
        own = first.view(groups, size)
        call.keeps(groups=line if blockwise else None)
        if blockwise:
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
    call.role(weight, Role("weight", (out_axis,), ins, groups=groups, blockwise=blockwise))
    call.keeps(in_channels=x.axes[channel], out_channels=out)
    out = _with_bias(call, out)
    axes = list(x.axes[:channel]) + [out] + [None] * (-channel - 1)
    plain = call.args.get("padding") == [0] * (-channel - 1)  # a deformable one names its padding otherwise
    for dim in range(channel + 1, 0):
        if weight.shape[dim] == 1 and plain and call["stride"][dim] == 1:
            axes[dim] = x.axes[dim]  # every position by itself
        elif dim != spanned - len(weight.shape):
            slots.fix(x.axes[dim], "convolved along it")
    return tuple(axes)


def _with_bias(call: Call, out: Axis) -> Axis:
    """The output channels of a layer, and of its bias where it has one."""
    bias = call.args.get("bias")
    call.role(bias, Role("bias"))
    return out if bias is None else call.slots.tie(out, bias.axes[0], "bias of fixed channels")


def _spanned(call: Call) -> int:
    """The last axis of the weight, where its taps are as many as the positions they meet and these are channels to
    somebody: a word's features, to a convolution of one input channel over sentences (Kim, EMNLP 2014). Otherwise 0."""
    x, weight = call["input"], call["weight"]
    single = call.op.startswith("conv") and "transpose" not in call.op and weight.shape[1] == call["groups"] == 1
    inside = single and isinstance(call["padding"], (list, tuple)) and call["padding"][-1] == 0
    meets = inside and 1 < weight.shape[-1] == x.shape[-1] and x.axes[-1] is not None
    return len(weight.shape) - 1 if meets else 0


def _is_product(number: int | None) -> bool:
    """Whether the code multiplies groups with something else: with the batch, where every example has weights."""
    return isinstance(number, Number) and isinstance(number.origin, Times)


@rule("conv1d", "conv2d", "conv3d")
def convolution(call: Call) -> Axes:
    """Plain, grouped, depthwise and dilated convolutions; weight (out, in / groups, *kernel)."""
    return convolve(call, out_axis=0, in_axis=1)


@rule("torchvision.deform_conv2d")
def deformable_convolution(call: Call) -> Axes:
    """A convolution whose taps lie at places given by another tensor, for each of so many groups of its inputs."""
    for name in ("offset", "mask"):
        for axis in call[name].axes:
            call.slots.fix(axis, "places of the taps")
    if call["offset_groups"] > 1:
        call.slots.fix(call["input"].axes[1], "each group of inputs has places of its own")
    return convolve(call, out_axis=0, in_axis=1)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(call: Call) -> Axes:
    """Transposed convolutions; weight (in, out / groups, *kernel)."""
    return convolve(call, out_axis=1, in_axis=0)


@rule("linear")
def linear(call: Call) -> Axes:
    """x (..., in) and weight (out, in) to (..., out)."""
    x, weight = call["input"], call["weight"]
    call.reads(x, -1, weight.axes[1])
    out = weight.axes[0]
    call.role(weight, Role("weight"))
    call.keeps(in_features=weight.axes[1], out_features=out)
    return (*x.axes[:-1], _with_bias(call, out))


@rule("bilinear")
def bilinear(call: Call) -> Axes:
    """x1 (..., in1), weight (out, in1, in2) and x2 (..., in2) to (..., out)."""
    weight = call["weight"]
    for dim, name in enumerate(("input1", "input2"), 1):
        call.reads(call[name], -1, weight.axes[dim])
    batch = call.meet([(call[name].shape[:-1], call[name].axes[:-1]) for name in ("input1", "input2")])
    out = weight.axes[0]
    call.role(weight, Role("weight", ins=(1, 2)))
    call.keeps(in1_features=weight.axes[1], in2_features=weight.axes[2], out_features=out)
    return (*batch, _with_bias(call, out))


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
        which, line = divide_groups(call.slots, axis, call["num_groups"])
        call.keeps(num_channels=axis, num_groups=line if which == 0 else None)
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


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(call: Call) -> Axes | list[Axes]:
    """A weight as direction `v` and length `g`, one length for each position of axis `dim`."""
    v, g = call["v"], call["g"]
    if call["dim"] >= 0:
        call.lengths.update(dict.fromkeys(g.origin or (), call["dim"]))
    axes = call.meet([(v.shape, v.axes), (g.shape, g.axes)])
    return axes if len(call.shapes) == 1 else [axes, g.axes]

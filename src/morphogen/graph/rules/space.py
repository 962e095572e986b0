"""Pooling, resizing, reductions, and ops that trade channels for space."""

from __future__ import annotations

from math import prod

import torch

from ..numbers import Number
from .pointwise import broadcast
from .table import Axes, Call, Value, rule


@rule(*[f"{kind}_pool{n}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3)])
@rule("max_pool2d_with_indices", "max_pool3d_with_indices")
@rule(*"upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d".split())
@rule(*"upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa".split())
@rule("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d")
def spatial(call: Call) -> Axes | list[Axes]:
    """Pooling and resizing: all axes behind the channels are space, which mixes neighbours where a kernel spans any."""
    x = call.input
    space = next(int(digit) for digit in reversed(call.op) if digit.isdigit())
    mixed = [dim for dim in range(-space, 0) if not _by_itself(call, dim)]
    for dim in mixed:
        call.slots.fix(x.axes[dim], f"neighbours along it are mixed by {call.op}")
    axes = tuple(None if i - len(x.axes) in mixed else axis for i, axis in enumerate(x.axes))
    return [axes] * len(call.shapes) if len(call.shapes) > 1 else axes


def _by_itself(call: Call, dim: int) -> bool:
    """Whether pooling leaves an axis as it is: windows of one position, from each to the next."""
    if "kernel_size" not in call.args:
        return False
    kernel = call["kernel_size"]
    given = kernel, call.args.get("stride") or kernel, call.args.get("padding") or [0]
    return [sizes[dim] if len(sizes) > 1 else sizes[0] for sizes in given] == [1, 1, 0]


@rule("pad", "constant_pad_nd", *[f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)])
def pad(call: Call) -> Axes:
    """Padding; the last axes come first in the list of pads.

    Constants beside the channels of a shortcut (option A of residual networks) are channels of their own, as many as
    the code's numbers count. An axis that is padded otherwise is of fixed size.
    """
    axes = list(call.input.axes)
    pads = call.args["pad"] if "pad" in call.args else call["padding"]
    numbers, constant = call.numbers(pads), call.args.get("mode", "constant") == "constant" and "pad" in call.args
    for i in range(len(pads) // 2):
        sides = [side for side in (2 * i, 2 * i + 1) if pads[side]]
        axis = axes[-1 - i]
        if not sides:
            continue
        if axis is None or not constant or not all(isinstance(numbers[i], Number) and pads[i] > 0 for i in sides):
            call.slots.fix(axis, f"padded by {call.op}")
            axes[-1 - i] = None
            continue
        new = {side: call.slots.fresh(max(0, pads[side])) for side in sides}
        for side, slots in new.items():
            call.counts(numbers[side], slots)
        before, behind = (new.get(side) for side in (2 * i, 2 * i + 1))
        axes[-1 - i] = torch.cat([part for part in (before, axis, behind) if part is not None])
    return tuple(axes)


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
    if call.op in ("argmax", "argmin") or (len(call.shapes) > 1 and call.op in ("max", "min") and call.used[1]):
        for i in gone:  # positions become values
            call.slots.fix(x.axes[i], f"positions along it are the result of {call.op}")
    kept = [None if i in gone else axis for i, axis in enumerate(x.axes) if call.args.get("keepdim") or i not in gone]
    return tuple(kept) if len(call.shapes) == 1 else [tuple(kept)] * len(call.shapes)


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Axes:
    """(C r r, H, W) to (C, H r, W r): the r r channels of one output channel go together."""
    x, r = call.input, call["upscale_factor"]
    channels = x.shape[-3] // r**2
    axis = x.axes[-3]
    _fix_space(call)
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
    _fix_space(call)
    return (*x.axes[:-3], None if axis is None else axis.repeat_interleave(call["downscale_factor"] ** 2), None, None)


def _fix_space(call: Call) -> None:
    for axis in call.input.axes[-2:]:
        call.slots.fix(axis, f"space is traded for channels by {call.op}")


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Axes:
    """(groups, C / groups) transposed: the same positions of every group go together."""
    x, groups = call.input, call["groups"]
    call.keeps(groups=None)
    axis = x.axes[1]
    if axis is not None:
        table = axis.view(groups, -1)
        call.slots.tie(axis, table[0].expand_as(table).reshape(-1), "")
        axis = table.t().reshape(-1)
    return (x.axes[0], axis, *x.axes[2:])


@rule("im2col")
def im2col(call: Call) -> Axes:
    """(N, C, H, W) to (N, C taps, places)."""
    *batch, channels, _, _ = call.input.axes
    for axis in call.input.axes[-2:]:
        call.slots.fix(axis, "neighbours along it are gathered by im2col")
    taps = prod(call["kernel_size"])
    return (*batch, None if channels is None else channels.repeat_interleave(taps), None)


@rule("col2im")
def col2im(call: Call) -> Axes:
    """(N, C taps, places) to (N, C, H, W): the taps of a channel go together."""
    *batch, channels, places = call.input.axes
    call.slots.fix(places, "laid out in space by col2im")
    if channels is not None:
        table = channels.view(-1, prod(call["kernel_size"]))
        call.slots.tie(table, table[:, :1].expand_as(table), "")
        channels = table[:, 0]
    return (*batch, channels, None, None)


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample(call: Call) -> Axes:
    """(N, C, H, W) sampled at places given by another tensor."""
    x, grid = call.values()
    for axis in (*x.axes[2:], *grid.axes[1:]):
        call.slots.fix(axis, "sampled along it")
    return (*x.axes[:2], *[None] * (len(x.axes) - 2))


@rule("torchvision.roi_align", "torchvision.roi_pool")
def boxes(call: Call) -> Axes | list[Axes]:
    """(N, C, H, W) cut at boxes, each to one size."""
    x, places = call["input"], call["rois"]
    for axis in (x.axes[0], *x.axes[2:], *places.axes):
        call.slots.fix(axis, "cut at boxes")
    axes = (None, x.axes[1], None, None)
    return axes if len(call.shapes) == 1 else [axes] * len(call.shapes)


@rule("max_unpool2d", "max_unpool3d")
def placed(call: Call) -> Axes:
    """Values put back at the places (N, C, H, W) that pooling has taken them from."""
    x, places = call.input, call["indices"]
    space = int(call.op[-2])
    for axis in (*x.axes[-space:], *places.axes[-space:]):
        call.slots.fix(axis, f"laid out in space by {call.op}")
    axes = call.meet([(each.shape[:-space], each.axes[:-space]) for each in (x, places)])
    return (*axes, *(None,) * space)


@rule("unfold")
def unfold(call: Call) -> Axes:
    """Windows along one axis, which stays whole, on a new last axis."""
    axes = list(call.input.axes)
    call.slots.fix(axes[call["dimension"]], "cut into windows")
    axes[call["dimension"]] = None
    return (*axes, None)


@rule(*"topk sort argsort median mode kthvalue".split())
def ordered(call: Call) -> Axes | list[Axes]:
    """Positions along an axis brought into an order, so that it stays whole."""
    axes = list(call.input.axes)
    call.slots.fix(axes[call["dim"]], f"ordered by {call.op}")
    axes[call["dim"]] = None
    kept = tuple(a for i, a in enumerate(axes) if len(call.shapes[0]) == len(axes) or i != call["dim"] % len(axes))
    return kept if len(call.shapes) == 1 else [kept] * len(call.shapes)

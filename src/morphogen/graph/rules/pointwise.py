"""Ops that leave every position where it is: activations, arithmetic, casts, new tensors."""

from __future__ import annotations

from ..slots import Axis
from .table import Axes, Call, rule


@rule(
    *"""
    abs alias alpha_dropout bernoulli celu clone contiguous cos detach dropout elu erf exp
    expm1 feature_alpha_dropout feature_dropout gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu lift_fresh
    lift_fresh_copy log log1p log_sigmoid log_softmax logical_not mish native_dropout neg ones_like rand_like
    randn_like reciprocal relu relu6 rsqrt selu sigmoid sign silu sin softmax softplus softshrink sqrt square
    tanh tanhshrink threshold to type_as zeros_like _to_copy empty_like full_like""".split()
)
def keep(call: Call) -> Axes | list[Axes]:
    """Activations, dropout, casts, copies."""
    return call.input.axes if len(call.shapes) == 1 else [call.input.axes] * len(call.shapes)


@rule(*"add sub rsub mul div maximum minimum pow where lerp addcmul addcdiv fmod remainder atan2 hypot".split())
@rule(*"clamp clamp_max clamp_min copy eq ne lt le gt ge logical_and logical_or masked_fill".split())
def broadcast(call: Call) -> Axes:
    """Arithmetic between tensors: axes that meet are alive together, and numbers do not depend on the size."""
    (shape,) = call.shapes
    call.keeps(**{name: None for name, value in call.args.items() if type(value) in (int, float)})
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


@rule(*"arange empty eye full linspace normal ones rand randint randn randperm scalar_tensor zeros".split())
@rule("new_empty", "new_full", "new_ones", "new_zeros")
def create(call: Call) -> Axes:
    """New tensors: their sizes are written in the model's code, so whatever meets them stays whole."""
    (shape,) = call.shapes
    return (None,) * len(shape)

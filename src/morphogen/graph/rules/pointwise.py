"""Ops that leave every position where it is: activations, arithmetic, casts, new tensors."""

from __future__ import annotations

from .table import Axes, Call, rule


@rule(
    *"""
    _to_copy abs acos alias alpha_dropout asin atan bernoulli bitwise_not ceil celu clone conj contiguous cos detach
    detach_copy dropout elu empty_like erf erfc erfinv exp exp2 expm1 exponential feature_alpha_dropout
    feature_dropout fill floor full_like gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan
    leaky_relu lift lift_fresh lift_fresh_copy log log10 log1p log2 log_sigmoid logical_not logit mish nan_to_num
    native_dropout neg ones_like positive rand_like randn_like reciprocal relu relu6 resolve_conj round rrelu rsqrt
    selu sgn sigmoid sign silu sin sinh softplus softshrink special_expm1 sqrt square tan tanh tanhshrink threshold
    to type_as uniform zero zeros_like""".split()
)
def keep(call: Call) -> Axes | list[Axes]:
    """Activations, dropout, casts, copies."""
    return call.input.axes if len(call.shapes) == 1 else [call.input.axes] * len(call.shapes)


@rule(*"add sub rsub mul div maximum minimum pow where lerp addcmul addcdiv fmod remainder atan2 hypot".split())
@rule(*"clamp clamp_max clamp_min copy eq ne lt le gt ge logical_and logical_or masked_fill".split())
def broadcast(call: Call) -> Axes:
    """Arithmetic between tensors: axes that meet are alive together."""
    return call.meet([(value.shape, value.axes) for value in call.values()])


@rule("_assert_tensor_metadata", "_assert_scalar", "sym_size")
def assertion(call: Call) -> Axes | list[Axes]:
    """Checks without an output."""
    return []


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp")
def along(call: Call) -> Axes:
    """Positions along one axis that weigh on each other, also where they are zero."""
    axes = list(call.input.axes)
    call.slots.fix(axes[call["dim"]], f"{call.op} along it")
    axes[call["dim"]] = None
    return tuple(axes)


@rule("tril", "triu")
def triangle(call: Call) -> Axes:
    """Half of a matrix: what is kept depends on the positions."""
    x = call.input
    for axis in x.axes[-2:]:
        call.slots.fix(axis, f"{call.op} along it")
    return (*x.axes[:-2], None, None)


@rule(*"arange eye linspace logspace randperm scalar_tensor".split())
def line(call: Call) -> Axes:
    """New tensors whose entries depend on their positions: what meets or counts them stays whole."""
    (shape,) = call.shapes
    call.keeps(**{name: None for name in ("n", "m", "end", "steps") if type(call.args.get(name)) is int})
    return (None,) * len(shape)


@rule(*"empty full normal ones rand randint randn zeros new_empty new_full new_ones new_zeros".split())
def create(call: Call) -> Axes:
    """New tensors of the sizes that the model's code gives: those that follow a size change with it."""
    (shape,) = call.shapes
    size = call.args.get("size")
    return call.sized(shape, call.numbers(size)) if size is not None else (None,) * len(shape)

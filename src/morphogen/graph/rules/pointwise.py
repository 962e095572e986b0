"""Ops that leave every position where it is: activations, arithmetic, casts, new tensors."""

from __future__ import annotations

import torch

from ...dense.program import op_name
from ...machine.private import OpOverload
from .table import RULES, Axes, Call, Rule, rule


@rule(
    *"""
    _to_copy alias alpha_dropout bernoulli conj contiguous detach detach_copy dropout empty_like exponential
    feature_alpha_dropout feature_dropout fill full_like lift lift_fresh lift_fresh_copy log_sigmoid native_dropout
    ones_like rand_like randint_like randn_like resolve_conj resolve_neg rrelu to type_as uniform zero zeros_like
    """.split()
)
def keep(call: Call) -> Axes | list[Axes]:
    """Dropout, casts, copies, new tensors of the same shape."""
    return call.input.axes if len(call.shapes) == 1 else [call.input.axes] * len(call.shapes)


@rule(*"__and__ __iand__ __or__ __ior__ absolute arccos arccosh arcsin arcsinh arctan arctan2 arctanh copy".split())
@rule("complex", "polar")
@rule(*"divide fix float_power floor_divide greater greater_equal hardswish imag isclose isreal".split())
@rule(*"leaky_relu less less_equal multiply negative not_equal real special_digamma special_erf special_erfc".split())
@rule(*"special_erfinv special_exp2 special_expit special_expm1 special_gammainc special_gammaincc".split())
@rule(*"special_gammaln special_i0 special_log1p special_logit special_ndtr special_polygamma special_psi".split())
@rule(*"special_round special_sinc special_xlogy square subtract tanhshrink where".split())
def broadcast(call: Call) -> Axes | list[Axes]:
    """Arithmetic, comparisons and activations, position by position: axes that meet are alive together.

    It is also the rule of every op without one of its own that PyTorch says goes position by position, see `rule_of`.
    """
    axes = call.meet([(value.shape, value.axes) for value in call.values()])
    return axes if len(call.shapes) == 1 else [axes] * len(call.shapes)


def rule_of(target: object) -> Rule | None:
    """The rule for an op of a graph: the one of its name, else `broadcast` where the op has `torch.Tag.pointwise`."""
    if not isinstance(target, OpOverload):
        return None
    return RULES.get(op_name(target)) or (broadcast if _is_pointwise(target) else None)


def _is_pointwise(target: OpOverload) -> bool:
    """Whether an op has the tag: itself, or one that writes no input in place (`relu` for `relu_`)."""
    if not all(isinstance(each.type, torch.TensorType) for each in target._schema.returns):  # `equal` returns a bool
        return False
    plain = getattr(torch.ops.aten, op_name(target), None) if target.namespace == "aten" else None
    others = [getattr(plain, name) for name in plain.overloads()] if plain is not None else []
    return any(torch.Tag.pointwise in each.tags for each in [target, *others])


@rule("_assert_tensor_metadata", "_assert_scalar", "_linalg_check_errors", "sym_size")
def assertion(call: Call) -> Axes | list[Axes]:
    """Checks without an output."""
    return []


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def along(call: Call) -> Axes | list[Axes]:
    """Positions along one axis, or several, that weigh on each other, also where they are zero."""
    axes = list(call.input.axes)
    for dim in call["dim"] if isinstance(call["dim"], (list, tuple)) else [call["dim"]]:
        call.slots.fix(axes[dim], f"{call.op} along it")
        axes[dim] = None
    return tuple(axes) if len(call.shapes) == 1 else [tuple(axes)] * len(call.shapes)


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

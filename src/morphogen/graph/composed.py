"""An op without a rule of its own, read as the simpler ops that PyTorch makes it of."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ..dense.program import bind, calls, silence, uncompiled
from ..machine.alone import READING
from ..machine.private import OpOverload, tree_flatten, tree_leaves, tree_unflatten
from .rules import rule_of

WHICH = frozenset(
    """dim dim0 dim1 dim2 dims dims_self dims_other axis axis0 axis1 correction diagonal indices n offset p reduction s
    sections""".split()
)
"""Arguments that say which axis, power or kind, or the size of an axis that the pieces fix. Any other whole number
could be a size that the pieces would take for one that PyTorch computed."""


def composed_of(node: torch.fx.Node) -> torch.fx.GraphModule | None:
    """A graph of ops with rules that computes what this op does of the same tensors, in order; None where there is
    none."""
    target = node.target
    if not isinstance(target, OpOverload) or _gives_sizes(node, target):
        return None
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda each: each.meta.get("val"))
    leaves, form = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def run(*tensors: torch.Tensor) -> Any:
        filled = [*leaves]
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        inner_args, inner_kwargs = tree_unflatten(filled, form)
        return target(*inner_args, **inner_kwargs)

    try:
        with READING, silence(), uncompiled():
            module = make_fx(run, decomposition_table=_table())(*(leaves[place] for place in places))
    except Exception:  # whatever an op's decomposition raises on fake tensors
        return None
    if any(rule_of(each.target) is None for each in calls(module)):
        return None
    for each in module.graph.nodes:  # they are ops of the same module
        each.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
    return module


def _gives_sizes(node: torch.fx.Node, target: OpOverload) -> bool:
    given = bind(target, node.args, dict(node.kwargs))
    usual = bind(target, (), {})
    return any(
        type(leaf) is int and value != usual[name]
        for name, value in given.items()
        if name not in WHICH
        for leaf in tree_leaves(value)
    )


@cache
def _table() -> Any:
    return torch.export.default_decompositions()

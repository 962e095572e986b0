"""Which batch norm follows a layer at once, so that the layer's own scale means nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from ..dense.program import bind, calls, op_name
from ..dense.subnet import BatchNorm
from ..machine.private import OpOverload

LAYERS = frozenset({"conv1d", "conv2d", "conv3d", "linear"})
"""Their output channels are axis 0 of the weight."""


def batch_norms(program: torch.export.ExportedProgram, names: Mapping[str, str]) -> dict[str, BatchNorm]:
    """The batch norm behind each weight that has one: it reads what the layer makes, and nothing else does.

    Args:
        program: the dense network in evaluation mode.
        names: the model's parameters and buffers by the names of the program's inputs.

    Returns:
        By the weight's name. Without those that share a weight or a scale with another layer, and without batch norms
        that learn no scale or keep no running variance.
    """
    found, uses = dict[str, BatchNorm](), Counter[str]()
    for node in calls(program.graph_module):
        op = op_name(node.target)
        if op not in LAYERS | {"batch_norm"} or not isinstance(node.target, OpOverload):
            continue
        given = bind(node.target, node.args, node.kwargs)
        weight = _name(given["weight"], names)
        uses[weight] += 1
        before = given["input"]
        if op != "batch_norm" or op_name(before.target) not in LAYERS or len(before.users) > 1:
            continue
        if op_name(before.target) == "linear" and before.meta["val"].ndim != 2:
            continue  # it normalises another axis than the layer's
        scale, variance = weight, _name(given["running_var"], names)
        layer = _name(bind(before.target, before.args, before.kwargs)["weight"], names)
        if scale and variance and layer:
            found[layer] = BatchNorm(scale, variance, float(given["eps"]))
    return {name: norm for name, norm in found.items() if uses[name] == uses[norm.scale] == 1}


def _name(node: object, names: Mapping[str, str]) -> str:
    return names.get(node.name, "") if isinstance(node, torch.fx.Node) else ""

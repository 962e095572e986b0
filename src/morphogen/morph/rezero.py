"""ReZero: a learned factor on each residual branch of a new block, zero at first (Bachlechner et al., UAI 2021).

The factor scales what the branch's last layer returns. It is a parameter of that layer, `rezero`, while the
stage lasts; then it is multiplied into the layer's weight and bias, and nothing of it remains in the model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

NAME = "rezero"


def add_factor(layer: nn.Module) -> nn.Parameter:
    """Scale what a layer with a weight returns by a new parameter, zero at first; returns it."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    factor = nn.Parameter(weight.new_zeros(()), requires_grad=weight.requires_grad)
    layer.register_parameter(NAME, factor)
    layer.register_forward_hook(_scale)
    return factor


def _scale(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
    factor = layer._parameters[NAME]
    assert factor is not None
    return output * factor.to(output.dtype)


def fold_factors(trees: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> None:
    """Multiply every factor into its layer and take it out; the function stays the same.

    Args:
        trees: the model, and averaged copies of it.
        optimizers: they lose the factors.
    """
    gone: set[int] = set()
    for tree in trees:
        for layer in tree.modules():
            factor = layer._parameters.get(NAME)
            if factor is None or _scale not in layer._forward_hooks.values():
                continue
            with torch.no_grad():
                for name in ("weight", "bias"):
                    tensor = layer._parameters.get(name)
                    if tensor is not None:
                        tensor.mul_(factor)
            gone.add(id(factor))
            del layer._parameters[NAME]
            for key, hook in list(layer._forward_hooks.items()):
                if hook is _scale:
                    del layer._forward_hooks[key]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in gone:
                    optimizer.state.pop(parameter, None)
            group["params"][:] = [parameter for parameter in group["params"] if id(parameter) not in gone]

"""ReZero: a learned factor on each residual branch of a new block, zero at first (Bachlechner et al., UAI 2021).

The factor scales what the branch's last layer returns. It is a parameter of that layer, `rezero`, while the
stage lasts; then it is multiplied into the layer's weight and bias, and nothing of it remains in the model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from ..dense.whole import overwrite
from ..machine.private import forward_hooks
from .optimizer import remove

FACTOR = "rezero"


def add_factor(layer: nn.Module) -> nn.Parameter:
    """Scale what a layer with a weight returns by a new parameter, zero at first; returns it."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    factor = nn.Parameter(weight.new_zeros(()), requires_grad=weight.requires_grad)
    layer.register_parameter(FACTOR, factor)
    layer.register_forward_hook(_scale)
    return factor


def _scale(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
    factor = layer._parameters[FACTOR]
    assert factor is not None
    return output * factor.to(output.dtype)


def fold_factors(trees: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> None:
    """Multiply every factor into its layer and take it out; the function stays the same.

    Args:
        trees: the model, and averaged copies of it.
        optimizers: they lose the factors.
    """
    gone: set[int] = set()
    for layer in (layer for tree in trees for layer in tree.modules() if has_factor(layer)):
        factor = layer._parameters[FACTOR]
        assert factor is not None
        gone.add(id(factor))
        for name in ("weight", "bias"):
            tensor = layer._parameters.get(name)
            if tensor is not None:
                overwrite(tensor, tensor.detach() * factor.detach())
                tensor.grad = None
                gone.add(id(tensor))
        del layer._parameters[FACTOR]
        (key,) = (key for key, hook in forward_hooks(layer).items() if hook is _scale)
        del forward_hooks(layer)[key]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            # The moments of a weight that is scaled are of another scale: it begins without, like the new it is.
            for parameter in [p for p in group["params"] if id(p) in gone and p in optimizer.state]:
                del optimizer.state[parameter]
            remove(group, {id(p) for p in group["params"] if p.ndim == 0 and id(p) in gone})


def has_factor(layer: nn.Module) -> bool:
    """Whether a layer's output is scaled by a factor of ours."""
    return _scale in forward_hooks(layer).values()

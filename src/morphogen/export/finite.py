"""A network that is not finite does not leave.

It predicts nothing, and a warning is lost on the way to whoever gets the file; so it is refused, by the name of the
tensor. `torch.save(model.state_dict(), ...)` keeps one that is to be looked into.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..errors import ExportError


def not_finite(model: nn.Module) -> str:
    """The first parameter or buffer that is not finite; empty where all are.

    Minus infinity is what masks of attention are made of: a buffer may hold it.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in [*parameters.items(), *model.named_buffers()]:
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
            continue
        values = tensor.detach()
        values = values.float() if values.element_size() == 1 else values  # float8 has no arithmetic
        wrong = ~torch.isfinite(values)
        if name not in parameters and not values.is_complex():
            wrong &= values != -math.inf
        if bool(wrong.any()):
            return name
    return ""


def check_finite(model: nn.Module) -> None:
    """Raise ExportError where a parameter or buffer is not finite."""
    if name := not_finite(model):
        raise ExportError(
            "the network is not finite, and is not written",
            where=name,
            expected="finite weights and buffers",
            todo="Training diverged: take an earlier state, a lower learning rate, or clip the gradients",
        )

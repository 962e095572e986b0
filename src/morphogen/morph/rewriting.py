"""Weights that are computed of others, after a change of size: written anew, their singular vectors estimated anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from ..dense.rewritten import computed, rewriters
from ..dense.whole import about_to_write
from ..machine.private import SpectralNormToday, power_iteration

ESTIMATES = 15
"""Power iterations after a change of size, as many as PyTorch makes for a new layer."""


def rewrite(model: nn.Module) -> None:
    """Write them now, for whoever reads them before the next forward pass.

    The singular vectors of spectral norm, of which channels have left or come, are estimated anew, also in
    parametrizations.
    """
    for module in model.modules():
        for _, hook in rewriters(module):
            if isinstance(hook, SpectralNorm):
                vectors = [getattr(module, f"{hook.name}_{side}") for side in "uv"]
                _estimate(vectors, lambda hook=hook, module=module: hook.compute_weight(module, True))
            setattr(module, hook.name, computed(hook, module, training=False))
        if isinstance(module, ParametrizationList):
            weight: Any = getattr(module, "original", None)  # of several tensors, which are no weight, there is none
            for each in module:
                if isinstance(each, SpectralNormToday) and weight.ndim > 1:
                    _estimate([each._u, each._v], lambda each=each, weight=weight: power_iteration(each, weight))


def _estimate(vectors: list[torch.Tensor], step: Callable[[], Any]) -> None:
    """Power iterations, where vectors are not of length 1 any more."""
    if any(not vector.is_meta and abs(float(vector.norm()) - 1) > 1e-3 for vector in vectors):
        about_to_write(vectors)
        with torch.no_grad():
            for _ in range(ESTIMATES):
                step()

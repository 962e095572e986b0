"""Weights that a hook computes anew before each forward pass: `torch.nn.utils.weight_norm` and `spectral_norm`, as they
were before PyTorch had parametrizations.

The module keeps what they are computed of as parameters, and the result as a plain attribute, which is written in each
forward pass. An export refuses that, so in doubles the result is a property.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..machine.private import SpectralNormToday, forward_pre_hooks, power_iteration
from .whole import about_to_write

ESTIMATES = 15
"""Power iterations after a change of size, as many as PyTorch makes for a new layer."""


def rewriters(module: nn.Module) -> Iterator[tuple[int, Any]]:
    """The hooks of a module that write one of its weights, each with its key among the hooks."""
    for key, hook in forward_pre_hooks(module).items():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            yield key, hook


def rewritten(module: nn.Module) -> set[str]:
    """The attributes of a module that such hooks write."""
    return {hook.name for _, hook in rewriters(module)}


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
            setattr(module, hook.name, _computed(hook, module, training=False))
        for of in module.parametrizations.values() if is_parametrized(module) else ():
            for each in of:
                if isinstance(each, SpectralNormToday):
                    _estimate([each._u, each._v], lambda each=each, of=of: power_iteration(each, of.original))


def _estimate(vectors: list[torch.Tensor], step: Callable[[], Any]) -> None:
    """Power iterations, where vectors are not of length 1 any more."""
    if any(abs(float(vector.norm()) - 1) > 1e-3 for vector in vectors):
        about_to_write(vectors)
        with torch.no_grad():
            for _ in range(ESTIMATES):
                step()


def as_properties(model: nn.Module) -> None:
    """Take such hooks from the modules of a double, in which the weights are computed where they are read."""
    for module in model.modules():
        for key, hook in list(rewriters(module)):
            del forward_pre_hooks(module)[key]
            delattr(module, hook.name)
            module.__class__ = _computing(type(module), type(hook), tuple(sorted(vars(hook).items())))


def _computed(hook: WeightNorm | SpectralNorm, module: nn.Module, *, training: bool) -> Any:
    return hook.compute_weight(module, *([training] if isinstance(hook, SpectralNorm) else []))


@cache
def _computing(kind: type[nn.Module], of: type[Any], settings: tuple[tuple[str, Any], ...]) -> type[nn.Module]:
    """A class of modules of one kind that compute a weight as a hook does; the same one for the same settings, so that
    blocks are still of one class."""
    hook: Any = object.__new__(of)
    vars(hook).update(settings)
    weight = property(lambda module: _computed(hook, module, training=module.training))
    return type(kind.__name__, (kind,), {hook.name: weight, "__module__": kind.__module__})

"""Weights that a hook computes anew before each forward pass: `torch.nn.utils.weight_norm` and `spectral_norm`, as they
were before PyTorch had parametrizations.

The module keeps what they are computed of as parameters, and the result as a plain attribute, which is written in each
forward pass. An export refuses that, so in doubles the result is a property.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..machine.private import forward_pre_hooks


def rewriters(module: nn.Module) -> Iterator[tuple[int, Any]]:
    """The hooks of a module that write one of its weights, each with its key among the hooks."""
    for key, hook in forward_pre_hooks(module).items():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            yield key, hook


def rewritten(module: nn.Module) -> set[str]:
    """The attributes of a module that such hooks write."""
    return {hook.name for _, hook in rewriters(module)}


def as_properties(model: nn.Module) -> None:
    """Take such hooks from the modules of a double, in which the weights are computed where they are read."""
    for module in model.modules():
        for key, hook in list(rewriters(module)):
            del forward_pre_hooks(module)[key]
            delattr(module, hook.name)
            module.__class__ = _computing(type(module), type(hook), tuple(sorted(vars(hook).items())))


def computed(hook: WeightNorm | SpectralNorm, module: nn.Module, *, training: bool) -> Any:
    """What a hook writes."""
    return hook.compute_weight(module, *([training] if isinstance(hook, SpectralNorm) else []))


@cache
def _computing(kind: type[nn.Module], of: type[Any], settings: tuple[tuple[str, Any], ...]) -> type[nn.Module]:
    """A class of modules of one kind that compute a weight as a hook does; the same one for the same settings, so that
    blocks are still of one class."""
    hook: Any = object.__new__(of)
    vars(hook).update(settings)
    weight = property(lambda module: computed(hook, module, training=module.training))
    return type(kind.__name__, (kind,), {hook.name: weight, "__module__": kind.__module__})

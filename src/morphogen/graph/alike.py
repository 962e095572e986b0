"""What makes blocks interchangeable: types, tensors, plain attributes and buffers. And stochastic depth, which may
differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ..dense.subnet import DropPath
from ..machine.private import NormBase, SpectralNormToday, tree_leaves
from .watch import Unit

KEPT_BY_PYTORCH = frozenset(vars(nn.Module()))


def form_of(tree: nn.Module) -> dict[str, Any]:
    """Types, tensors, and plain attributes of the modules in a block, by their path inside."""
    form: dict[str, Any] = {}
    for path, module in tree.named_modules():
        if drop_path_attribute(module) is not None or type(module) is nn.Identity:
            continue  # stochastic depth differs from block to block, and is absent where its rate is 0
        form[f"{path}:type"] = type_before_parametrizations(module)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            form[f"{path}.{name}"] = None if tensor is None else (tuple(tensor.shape), tensor.dtype)
        for name, value in vars(module).items():
            if name not in KEPT_BY_PYTORCH:
                plain = all(leaf is None or isinstance(leaf, (bool, int, float, str)) for leaf in tree_leaves(value))
                form[f"{path}.{name}"] = value if plain else type(value)
    return form


def drop_path_attribute(module: nn.Module) -> str | None:
    """The attribute in which a module of stochastic depth keeps its rate; None for any other module."""
    if "DropPath" in type(module).__name__ or "StochasticDepth" in type(module).__name__:
        return next((name for name in ("drop_prob", "p") if hasattr(module, name)), None)
    return None


def drop_path_of(tree: nn.Module, prefix: str = "") -> Iterable[DropPath]:
    """All stochastic depth in a module."""
    for path, module in tree.named_modules(prefix=prefix):
        attribute = drop_path_attribute(module)
        if attribute is not None:
            yield DropPath(path, attribute, float(getattr(module, attribute) or 0.0))


def difference(one: Unit, other: Unit, buffers: Mapping[str, torch.Tensor]) -> str | None:
    """Why two units are not interchangeable; `buffers` are the model's tensors that are no parameters, with values."""
    if len(one.blocks) != len(other.blocks):
        return f"{len(one.blocks)} modules are called in {one.path} and {len(other.blocks)} in {other.path}"
    for a, b in zip(one.blocks, other.blocks, strict=True):
        for key in {**a.form, **b.form}:
            left, right = a.form.get(key), b.form.get(key)
            if left != right and not (type(left) is int and left == one.position and right == other.position):
                return f"{key.strip('.:')} is {_short(left)} in {a.path} and {_short(right)} in {b.path}"
        for path, module in a.module.named_modules():
            if not isinstance(module, NormBase):  # running statistics are learned, like weights
                for key in [*module._buffers, *vars(module)]:
                    if _is_estimate(module, key):
                        continue
                    name = f"{path}.{key}".lstrip(".")
                    left, right = buffers.get(f"{a.path}.{name}"), buffers.get(f"{b.path}.{name}")
                    if left is None or right is None:
                        continue
                    if left.is_meta:
                        return f"the buffer {name} has no values yet (device meta)"
                    if not torch.equal(left, right):
                        return f"the buffer {name} is another in {a.path} than in {b.path}"
    return None


def _is_estimate(module: nn.Module, key: str) -> bool:
    """Whether a buffer is a singular vector that spectral norm estimates while it trains."""
    of, _, side = key.rpartition("_")
    return side in ("u", "v") and (isinstance(module, SpectralNormToday) or f"{of}_orig" in module._parameters)


def _short(value: Any) -> str:
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.dtype):
        return f"of shape {value[0]}"
    return "missing" if value is None else repr(value)

"""States of optimizers that could not train: PyTorch takes them as they are, and fails in a later step, or never."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from ..errors import CheckpointError


def check_moments(
    optimizer: Optimizer, entries: Mapping[str, tuple[Any, torch.Tensor | None]], *, cast: bool = False
) -> None:
    """Refuse what is no state of the parameters of one group.

    Every value must be a scalar, or a tensor of its parameter's shape, of real floating-point numbers where that is.
    Optimizers of PyTorch keep the same for each parameter, of its type.

    Args:
        optimizer: for its kind.
        entries: for each parameter of a group, by name, its state (None where it has none) and the parameter, or its
            value (None where it is nobody's here).
        cast: they become numbers of their parameter's type when they are loaded, as `Optimizer.load_state_dict` does.

    Raises:
        CheckpointError: which parameter's.
    """
    kind, first = type(optimizer).__name__, None
    of_pytorch = type(optimizer).__module__.startswith("torch.optim")
    for name, (entry, parameter) in entries.items():
        if entry is None or not len(entry):
            continue
        if not isinstance(entry, Mapping):
            raise _unfit(kind, name, "a dictionary", type(entry).__name__)
        for key, value in entry.items():
            if isinstance(value, torch.Tensor):
                _check_tensor(kind, f"{name}, '{key}'", value, parameter, of_pytorch and not cast)
                if key == "step" and not (value.numel() == 1 and 0 <= float(value) < math.inf):
                    raise _unfit(kind, f"{name}, '{key}'", "a number of steps", f"{value}"[:80])
            elif isinstance(value, float) and not math.isfinite(value):
                raise _unfit(kind, f"{name}, '{key}'", "a finite number", f"{value}")
        if of_pytorch:
            kinds = {key: type(value) for key, value in entry.items() if value is not None}
            first = first or (name, kinds)
            if kinds != first[1]:
                different = sorted(map(str, {*kinds.items()} ^ {*first[1].items()}))
                raise _unfit(kind, name, f"the same keys and kinds as {first[0]}", different[0])


def _check_tensor(kind: str, where: str, value: torch.Tensor, parameter: torch.Tensor | None, same_type: bool) -> None:
    if value.layout != torch.strided or value.is_meta:
        raise _unfit(kind, where, "a dense tensor", f"{value.layout} on {value.device}")
    if parameter is not None and value.numel() > 1 and value.shape != parameter.shape:
        raise _unfit(kind, where, f"shape {tuple(parameter.shape)}", f"shape {tuple(value.shape)}")
    if value.numel() == 0 and (parameter is None or parameter.numel()):
        raise _unfit(kind, where, "a value", "an empty tensor")
    if parameter is not None and value.ndim and value.shape == parameter.shape and parameter.is_floating_point():
        if not value.is_floating_point() and value.dtype not in (torch.uint8, torch.bool):
            raise _unfit(kind, where, "floating-point numbers", f"{value.dtype}")
        if same_type and value.is_floating_point() and value.dtype != parameter.dtype:
            raise _unfit(kind, where, f"{parameter.dtype}, as its parameter", f"{value.dtype}")
    if value.is_complex() and (parameter is None or not parameter.is_complex()):
        raise _unfit(kind, where, "real numbers", f"{value.dtype}")


def check_groups(optimizer: Optimizer, saved: Sequence[Mapping[str, Any]]) -> None:
    """Refuse settings of parameter groups (without their parameters) that are not like the optimizer's defaults.

    Raises:
        CheckpointError: which setting.
    """
    kind = type(optimizer).__name__
    for number, settings in enumerate(saved):
        for key, default in optimizer.defaults.items():
            where = f"group {number}, '{key}'"
            if key not in settings:
                if isinstance(default, bool) or default is None:  # another release of PyTorch may have more of them
                    continue
                raise _unfit(kind, where, f"such as {default}", "none")
            value = settings[key]
            if not _is_like(value, default) or (key == "lr" and not float(value) >= 0):
                raise _unfit(kind, where, f"such as {default}", f"{value!r}"[:80])


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value may stand where a default does; what is None by default may be any number or flag."""
    if isinstance(default, bool) or default is None:
        return value is None or isinstance(value, bool) or (default is None and _is_number(value))
    if isinstance(default, (int, float, torch.Tensor)):
        return not isinstance(value, bool) and _is_number(value)
    if isinstance(default, (tuple, list)):
        if not isinstance(value, (tuple, list)) or len(value) != len(default):
            return False
        return all(_is_like(*pair) for pair in zip(value, default, strict=True))
    return isinstance(value, type(default))


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex() and bool(value.isfinite())
    return isinstance(value, (int, float)) and math.isfinite(value)


def _unfit(kind: str, where: str, expected: str, found: str) -> CheckpointError:
    return CheckpointError(f"{kind} could not train with this state", where=where, expected=expected, found=found)

"""The optimizer's state follows its parameters, index by index."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..dense.fake import has_own_arithmetic
from ..errors import MorphError
from .tensors import TensorMap

Begins = dict[str, float | None]
"""How each entry of a parameter's state begins: as a constant, or (None) as a copy of the weights."""

SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "exp_inf")
"""Running means of squared gradients whose bias is corrected by the number of steps (Adam and its relatives). That
number is the tensor's: after 2,000 steps it corrects nothing, and an entry that begins at 0 would first move by
(1 - beta1) / sqrt(1 - beta2) = 3 learning rates, ten times as far as the others. What is new begins at the mean of the
old, so that its first steps are as long as theirs, and its own gradients take over in 1 / (1 - beta2) steps."""


def check_state(kind: str, name: str, parameter: torch.Tensor, state: Any, said: str = "") -> None:
    """Refuse the state of one parameter where it cannot follow; raises MorphError, which says of what shape that is."""
    for key, value in state.items() if isinstance(state, Mapping) else [("state", state)]:
        if fits(value, parameter):
            continue
        found = [tensor for tensor in tensors_in(value) if tensor.numel() > 1]
        if found:
            shapes = ", ".join(f"shape {tuple(tensor.shape)}" for tensor in found[:3])
            own = " (a class that computes in its own way)" if has_own_arithmetic(found[0]) else ""
            raise cannot_follow(
                kind, name, f"'{key}' of {shapes}{own}{said}", "" if said else f"shape {tuple(parameter.shape)}"
            )


def cannot_follow(kind: str, name: str, found: str, shape: str = "") -> MorphError:
    """What is raised for an optimizer whose state is not one entry a weight."""
    return MorphError(
        f"{kind} keeps a state that cannot follow its parameter",
        where=name,
        expected="scalars and dense tensors of " + (shape or "the parameter's shape"),
        found=found,
        todo="Use an optimizer with one state entry a weight, such as SGD or AdamW",
    )


def carried_state(
    optimizer: Optimizer,
    begins: Begins,
    parameter: nn.Parameter,
    change: TensorMap,
    new: torch.Tensor,
    *,
    rescaled: bool = False,
) -> dict[str, torch.Tensor]:
    """The state of one parameter at its new size; new entries get what the optimizer would begin with, and second
    moments that of the old ones.

    Args:
        optimizer: any optimizer; one that does not hold the parameter has no state for it.
        begins: what `rehearse_step` says.
        parameter: still with its old value.
        change: how it changes.
        new: its new value.
        rescaled: old weights were divided, so that an average of them begins anew; moments are carried all the same:
            the gradient of a weight that reads a copy is what it was.
    """
    state = optimizer.state.get(parameter)
    if not state or not any(p is parameter for group in optimizer.param_groups for p in group["params"]):
        return {}  # or it is a leftover of a parameter that was taken out
    carried = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or not value.ndim:
            continue
        begin: float | torch.Tensor | None = begins.get(key, 0.0)
        if begin is None:
            begin = new.to(value)
        elif key in SECOND_MOMENTS and change.grows:
            begin = value.float().mean().to(value.dtype).expand(change.new_shape)
        if rescaled and begins.get(key, 0.0) is None:
            carried[key] = new.to(value, copy=True)
        else:
            carried[key] = change.regrid(change.carry(value, begin), smooth=False)
    return carried


def fits(value: Any, parameter: torch.Tensor) -> bool:
    """Whether a value is a dense tensor of the parameter's shape."""
    if not isinstance(value, torch.Tensor) or has_own_arithmetic(value):
        return False
    return value.shape == parameter.shape and value.layout == torch.strided


def tensors_in(value: Any, known: set[int] | None = None) -> Iterator[torch.Tensor]:
    """The tensors in containers and in objects, without those that are known and those of modules; each once."""
    seen, found = {*(known or ())}, [value]
    while found:
        each = found.pop()
        if id(each) in seen or isinstance(each, (nn.Module, Optimizer, type, FunctionType, ModuleType)):
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, Mapping):
            found += [*each.values()]
        elif isinstance(each, (list, tuple, set, deque)):
            found += [*each]
        elif hasattr(each, "__dict__"):
            found += [*vars(each).values()]

"""Weights, buffers and optimizer states as plain data, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..dense.subnet import SubNetwork
from ..dense.whole import about_to_write
from ..errors import CheckpointError


def parameter_names(model: nn.Module, *optimizers: Optimizer) -> dict[nn.Parameter, str]:
    """The names of a model's parameters; those of others in its optimizers (a loss's own, say) go by their places."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, group in enumerate(optimizer.param_groups):
            for k, parameter in enumerate(group["params"]):
                names.setdefault(parameter, f"optimizer {i}, group {j}, parameter {k}")
    return names


@lru_cache(maxsize=64)
def as_data(subnetwork: SubNetwork) -> dict[str, Any]:
    """A sub-network as JSON types; made once, since averages are updated by way of state dicts."""
    return subnetwork.to_dict()


def tree_state(tree: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """The `state_dict` of a module, and the buffers that are not in it."""
    state = tree.state_dict()
    return {"state": state, "buffers": {name: b for name, b in tree.named_buffers() if name not in state}}


def load_tree(tree: nn.Module, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """The inverse of `tree_state`, in place."""
    about_to_write([*tree.parameters(), *tree.buffers()])
    tree.load_state_dict(state["state"])
    buffers = dict(tree.named_buffers())
    with torch.no_grad():
        for name, value in state["buffers"].items():
            buffers[name].copy_(value)


def optimizer_state(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
    """Settings and moments of an optimizer, by the names of its parameters: their order follows the morphs' history."""
    return {
        "kind": type(optimizer).__name__,
        "groups": [
            {
                "parameters": [names[parameter] for parameter in group["params"]],
                "settings": {key: value for key, value in group.items() if key not in ("params", "param_names")},
            }
            for group in optimizer.param_groups
        ],
        "state": {name: dict(optimizer.state[p]) for p, name in names.items() if p in optimizer.state},
    }


def load_optimizer(optimizer: Optimizer, names: Mapping[nn.Parameter, str], state: Mapping[str, Any]) -> None:
    """The inverse, in place; the groups stay the same dictionaries, by which others know them.

    Raises:
        CheckpointError: it holds other parameters, or in other groups; nothing was changed.
    """
    check_optimizer(optimizer, names, state, whole=True)
    parameters = {name: parameter for parameter, name in names.items()}
    groups = list(optimizer.param_groups)
    numbers: dict[str, int] = {}
    flat: list[dict[str, Any]] = []
    for group, saved in zip(groups, state["groups"], strict=True):
        group["params"][:] = [parameters[name] for name in saved["parameters"]]
        if "param_names" in group:
            group["param_names"][:] = saved["parameters"]
        for name in saved["parameters"]:
            numbers[name] = len(numbers)
        known = {"param_names": group["param_names"]} if "param_names" in group else {}
        flat.append({**saved["settings"], **known, "params": [numbers[name] for name in saved["parameters"]]})
    by_number = {numbers[name]: dict(entry) for name, entry in state["state"].items() if name in numbers}
    optimizer.load_state_dict({"state": by_number, "param_groups": flat})
    for name in numbers:  # moments lie in memory as their weights do, and keep the type they were saved with
        parameter, entry = parameters[name], state["state"].get(name, {})
        for key, value in entry.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                optimizer.state[parameter][key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif isinstance(value, torch.Tensor):
                optimizer.state[parameter][key] = value.to(optimizer.state[parameter][key].device, copy=True)
    for group, loaded in zip(groups, optimizer.param_groups, strict=True):
        for key in [key for key in group if key not in ("params", "param_names")]:
            del group[key]  # as PyTorch does: what the state does not have is gone
        group.update({key: value for key, value in loaded.items() if key not in ("params", "param_names")})
    optimizer.param_groups[:] = groups


def check_equal(saved: Any, loaded: Any, where: str = "") -> None:
    """Refuse a state that is not what has become of it: what was left out, added or turned into something else.

    Raises:
        CheckpointError: at the first place that differs.
    """
    if isinstance(saved, Mapping) and isinstance(loaded, Mapping):
        flags = where.endswith(".settings")  # another release of PyTorch may have more of them
        absent = [name for name in loaded if name not in saved and not (flags and loaded[name] in (None, True, False))]
        for name in (*absent, *(name for name in saved if name not in loaded)):
            raise _differs(
                f"{where}.{name}", "as it was saved" if name in loaded else "nothing", "another key, or none"
            )
        for name, value in saved.items():
            check_equal(value, loaded[name], f"{where}.{name}")
    elif isinstance(saved, (list, tuple)) and isinstance(loaded, (list, tuple)):
        if len(saved) != len(loaded):
            raise _differs(where, f"{len(loaded)} entries", f"{len(saved)}")
        for number, pair in enumerate(zip(saved, loaded, strict=True)):
            check_equal(*pair, f"{where}.{number}")
    elif isinstance(saved, torch.Tensor) and isinstance(loaded, torch.Tensor):
        if (saved.shape, saved.dtype) != (loaded.shape, loaded.dtype) or not _same_bits(saved, loaded):
            raise _differs(where, _kind(loaded), f"{_kind(saved)}, which does not fit")
    elif isinstance(saved, torch.Tensor) or isinstance(loaded, torch.Tensor) or not _is_same(saved, loaded):
        raise _differs(where, f"such as {loaded!r}", f"{saved!r}"[:80])


def _is_same(saved: Any, loaded: Any) -> bool:
    return (saved is None) == (loaded is None) and isinstance(saved, str) == isinstance(loaded, str) and saved == loaded


def _same_bits(saved: torch.Tensor, loaded: torch.Tensor) -> bool:
    bits = [t.detach().to(loaded.device).contiguous().view(-1).view(torch.uint8) for t in (saved, loaded)]
    return torch.equal(*bits)


def _kind(tensor: torch.Tensor) -> str:
    return f"shape {tuple(tensor.shape)}, {tensor.dtype}"


def _differs(where: str, expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        "the state of the run is damaged, or not this run's",
        where=where.lstrip("."),
        expected=expected,
        found=found,
        todo="Load what run.state_dict() gave",
    )


def check_optimizer(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str], state: Mapping[str, Any], *, whole: bool
) -> None:
    """Refuse a state that is not this optimizer's.

    Args:
        optimizer: with its groups.
        names: of the parameters that may be in them.
        state: see `optimizer_state`.
        whole: its groups must hold just what the state's do; else, no parameter may be in another group.

    Raises:
        CheckpointError: where it is.
    """
    kind = type(optimizer).__name__
    if state["kind"] != kind:
        raise CheckpointError("the optimizer is another one", expected=f"{state['kind']}, as it was saved", found=kind)
    if len(state["groups"]) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{kind} has other parameter groups",
            expected=f"{len(state['groups'])}, as they were saved",
            found=f"{len(optimizer.param_groups)}",
        )
    counts = Counter(str(name) for group in state["groups"] for name in group["parameters"])
    for name, count in counts.items():
        if count > 1:
            raise CheckpointError(f"{kind} has this parameter twice", where=name, expected="1", found=f"{count}")
    saved = {name: number for number, group in enumerate(state["groups"]) for name in group["parameters"]}
    here = {names[p]: number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    for name in sorted(saved.keys() | here.keys()) if whole else saved.keys() & here.keys():
        if saved.get(name) != here.get(name):
            raise CheckpointError(
                f"{kind} holds this parameter in another group than when it was saved",
                where=name,
                expected=f"group {saved[name]}" if name in saved else "no group",
                found=f"group {here[name]}" if name in here else "none",
            )

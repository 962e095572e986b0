"""The optimizer's state follows its parameters, index by index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import MorphError
from ..machine.private import tree_leaves
from .tensors import TensorMap


def check_optimizers(
    optimizers: Iterable[Optimizer], names: Mapping[nn.Parameter, str], changing: Iterable[str]
) -> None:
    """Refuse, before anything is changed, what `carried_state` could not carry.

    Args:
        optimizers: all optimizers of the model.
        names: the model's parameters.
        changing: the tensors that will change, come or go.

    Raises:
        MorphError: an optimizer holds a parameter of another model, two hold the same one, or a state tensor
            is neither a scalar nor of its parameter's shape, or will be so (Adafactor, LBFGS).
    """
    seen: set[nn.Parameter] = set()
    changing = set(changing)
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        if any(isinstance(value, Optimizer) for value in vars(optimizer).values()):  # Lookahead
            raise MorphError(
                f"{kind} keeps its state in another optimizer",
                expected="an optimizer with a state of its own",
                todo="Train with its base optimizer",
            )
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if parameter not in names:
                    raise MorphError(
                        f"{kind} holds a parameter that is not the model's",
                        where=f"param_groups[{number}]",
                        expected="parameters of the traced model",
                        found=f"one of shape {tuple(parameter.shape)}",
                        todo="Make the optimizer from the parameters of the model you traced",
                    )
                if parameter in seen:
                    raise MorphError("the parameter is in two optimizer groups", where=names[parameter])
                seen.add(parameter)
                if names[parameter] in changing and _factors(group, parameter):
                    raise _cannot_follow(kind, names[parameter], parameter, "rows and columns of second moments")
        if any(names[parameter] in changing for parameter in held):
            if any("history_size" in group for group in optimizer.param_groups):  # LBFGS, before its first step
                raise _cannot_follow(kind, names[held[0]], held[0], "a history of all parameters as one vector")
            # Every parameter's state is looked at: some optimizers keep all of it with the first.
            for parameter in held:
                _check_state(kind, names[parameter], parameter, optimizer.state.get(parameter, {}))


def _check_state(kind: str, name: str, parameter: nn.Parameter, state: Mapping[str, Any]) -> None:
    for key, value in state.items():
        fits = isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.layout == torch.strided
        leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        if not fits and any(leaf.numel() > 1 for leaf in leaves):
            found = ", ".join(f"shape {tuple(leaf.shape)}" for leaf in leaves)
            raise _cannot_follow(kind, name, parameter, f"'{key}' of {found}")


def _cannot_follow(kind: str, name: str, parameter: nn.Parameter, found: str) -> MorphError:
    return MorphError(
        f"{kind} keeps a state that cannot follow its parameter",
        where=name,
        expected=f"scalars and dense tensors of shape {tuple(parameter.shape)}",
        found=found,
        todo="Use an optimizer with one state entry a weight, such as SGD or AdamW",
    )


def _factors(group: Mapping[str, Any], parameter: nn.Parameter) -> bool:
    """Whether PyTorch's or timm's Adafactor will factor a second moment; before its first step no state says so."""
    least = group.get("min_dim_size_to_factor", 0 if "beta2_decay" in group else None)
    return least is not None and parameter.ndim > 1 and sorted(parameter.shape)[-2] >= least


OF_THE_WEIGHTS = ("ax", "x0", "z")
"""States that begin as the weights themselves, and so does what is new of them: ASGD's average, MADGRAD's and dual
averaging's origin, the sequence behind a schedule-free optimizer's average."""


SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "exp_inf")
"""Running means of squared gradients whose bias is corrected by the number of steps (Adam and its relatives). That
number is the tensor's: after 2,000 steps it corrects nothing, and an entry that begins at 0 would first move by
(1 - beta1) / sqrt(1 - beta2) = 3 learning rates, ten times as far as the others. What is new begins at the mean of the
old, so that its first steps are as long as theirs, and its own gradients take over in 1 / (1 - beta2) steps."""


def carried_state(
    optimizer: Optimizer, parameter: nn.Parameter, change: TensorMap, new: torch.Tensor, *, rescaled: bool = False
) -> dict[str, torch.Tensor]:
    """The state of one parameter at its new size; new entries get what the optimizer would begin with, and second
    moments that of the old ones.

    Args:
        optimizer: any optimizer; one that does not hold the parameter has no state for it.
        parameter: still with its old value.
        change: how it changes.
        new: its new value.
        rescaled: old weights were divided, so that an average of them begins anew; moments are carried all the same:
            the gradient of a weight that reads a copy is what it was.
    """
    state = optimizer.state.get(parameter)
    if not state:
        return {}
    groups = [group for group in optimizer.param_groups if any(p is parameter for p in group["params"])]
    if not groups:
        return {}  # a leftover of a parameter that was taken out
    (group,) = groups
    begin: dict[str, float | torch.Tensor] = {
        "sum": group.get("initial_accumulator_value", 0.0),  # Adagrad
        "step_size": float(group["lr"]),  # Rprop
        "square_avg": float("lr_in_momentum" in group),  # 1 in timm's RMSpropTF, 0 in PyTorch's
    }
    begin |= {key: new.to(state[key]) for key in OF_THE_WEIGHTS if key in state}
    if change.grows:
        means = {key: state[key].float().mean().to(state[key].dtype) for key in SECOND_MOMENTS if key in state}
        begin |= {key: mean.expand(change.new_shape) for key, mean in means.items()}
    carried = {
        key: change.regrid(change.carry(value, begin.get(key, 0.0)), smooth=False)
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.ndim
    }
    if rescaled:
        carried |= {key: new.to(carried[key], copy=True) for key in OF_THE_WEIGHTS if key in carried}
    return carried


def begin_together(optimizers: Iterable[Optimizer]) -> None:
    """Give what joins later a momentum of zero, which stands for none, where the optimizer takes none or all.

    Fused SGD steps all parameters in one call, and that call knows no parameter without momentum beside others with it.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
            for parameter in group["params"] if group["fused"] and group["momentum"] else ():
                if parameter.requires_grad and optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


Held = list[tuple[dict[str, Any], list[nn.Parameter]]]
"""Parameter groups of an optimizer that have lost parameters, each with all it held, in order."""


def leave(optimizer: Optimizer, parameters: Iterable[nn.Parameter], held: Held) -> None:
    """Take the parameters of blocks that go out of their groups, with their state; `held` notes where they were."""
    gone = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        if not any(id(parameter) in gone for parameter in group["params"]):
            continue
        if not any(known is group for known, _ in held):
            held.append((group, list(group["params"])))
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        remove(group, gone)


def enter(
    optimizers: Sequence[Optimizer],
    parameters: Mapping[str, nn.Parameter],
    counterparts: Mapping[str, Sequence[nn.Parameter]],
    held: Sequence[Held],
    order: Mapping[int, int],
) -> None:
    """Put each parameter of the blocks that come in into one group: the one it was in, else a counterpart's.

    Args:
        optimizers: of the model; together they get no parameter of which they train no counterpart.
        parameters: those that come in, by name.
        counterparts: the same parameter of the old blocks, the nearest first.
        held: for each optimizer, what was noted when they went out.
        order: the place of each of the model's parameters, by id, for groups that have no note.
    """
    there = {id(p): group for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    # An optimizer that has loaded a state has other groups; their lists of parameters stay.
    present = {id(group["params"]): group for optimizer in optimizers for group in optimizer.param_groups}
    notes = [
        (present.get(id(group["params"]), group), {id(p): place for place, p in enumerate(all_of_it)})
        for note in held
        for group, all_of_it in note
    ]
    for name, parameter in parameters.items():
        if id(parameter) in there:
            continue
        home = next(((group, places) for group, places in notes if id(parameter) in places), None)
        twin = next((p for p in counterparts[name] if id(p) in there), None)
        if home is not None:
            _insert(home[0], name, parameter, home[1])
        elif twin is not None and parameter.requires_grad:
            _insert(there[id(twin)], name, parameter, order)


def append(group: dict[str, Any], name: str, parameter: nn.Parameter) -> None:
    """Add a parameter, and its name where the group has names."""
    group["params"].append(parameter)
    if "param_names" in group:
        group["param_names"].append(name)


def remove(group: dict[str, Any], gone: set[int]) -> None:
    """Take parameters (by id) out of a group, and their names where it has names."""
    kept = [i for i, parameter in enumerate(group["params"]) if id(parameter) not in gone]
    for key in ("params", "param_names"):
        if key in group:
            group[key][:] = [group[key][i] for i in kept]


def _insert(group: dict[str, Any], name: str, parameter: nn.Parameter, order: Mapping[int, int]) -> None:
    """Put a parameter behind the last one of its group that comes before it."""
    mine = order[id(parameter)]
    before = [i for i, other in enumerate(group["params"]) if order.get(id(other), mine) < mine]
    place = before[-1] + 1 if before else 0
    group["params"].insert(place, parameter)
    if "param_names" in group:
        group["param_names"].insert(place, name)

"""Optimizers of a model that changes: what is refused, and the groups that parameters leave and enter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import MorphError
from .optimizer_rehearsal import rehearse_step
from .optimizer_state import Begins, check_state


def check_optimizers(
    optimizers: Iterable[Optimizer],
    names: Mapping[nn.Parameter, str],
    changing: Iterable[str],
    begins: MutableMapping[Optimizer, Begins],
) -> None:
    """Refuse, before anything is changed, what `carried_state` could not carry.

    An optimizer may hold others' parameters too: those of a detector whose backbone was traced.

    Args:
        optimizers: all optimizers of the model.
        names: the model's parameters.
        changing: the tensors that will change, come or go.
        begins: what rehearsals have found; an optimizer that is not there yet is rehearsed, once.

    Raises:
        MorphError: an optimizer holds none of the model's parameters, two hold the same one, or one keeps a state that
            is neither scalars nor tensors of its parameter's shape (Adafactor, LBFGS, Shampoo).
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
        everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        held = [parameter for parameter in everything if parameter in names]
        if everything and not held:
            raise MorphError(
                f"{kind} holds no parameter that is the model's",
                where="param_groups",
                expected="parameters of the traced model, and any others beside them",
                found=f"{len(everything)} others",
                todo="Make the optimizer from the parameters of the model you traced",
            )
        for parameter in held:
            if parameter in seen:
                raise MorphError("the parameter is in two optimizer groups", where=names[parameter])
            seen.add(parameter)
        moving = {parameter: names[parameter] for parameter in held if names[parameter] in changing}
        if not moving:
            continue
        if optimizer not in begins:
            begins[optimizer] = rehearse_step(optimizer, moving)
        # Every parameter's state is looked at: some optimizers keep all of it with the first.
        for parameter in held:
            check_state(kind, names[parameter], parameter, optimizer.state.get(parameter, {}))


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

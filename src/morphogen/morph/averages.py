"""Averaged copies of a model, whatever kind of object keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import nn

from ..dense.double import double
from ..errors import MorphError
from ..machine.averages import inside


def several_averages(ema: Any, model: nn.Module) -> list[nn.Module]:
    """None, one or several averages as modules: as they are, the copy that another object holds, or `Shadows`.

    Raises:
        MorphError: an object holds neither a copy of the model nor a list of its averaged parameters.
    """
    given = [] if ema is None else ema if isinstance(ema, (list, tuple)) else [ema]
    return [each if isinstance(each, nn.Module) else _held_by(each, model) for each in given]


def averaged(ema: nn.Module, model: nn.Module) -> nn.Module:
    """The copy of the model inside AveragedModel, ModelEmaV3 and their like, inside wrappers copied along, and inside
    the copy of a whole that the model is a part of."""
    inner = ema
    while type(inner) is not type(model):
        held = inside(inner)
        if held is None:
            return next(_copies(ema, model), ema)
        inner = held
    return inner


class Shadows(nn.Module):
    """A copy of the model made of averages that an object keeps one by one: torch_ema, diffusers' EMAModel, and objects
    with a dictionary by the parameters' names.

    Attributes:
        module: the copy.
        container: the list or dictionary, which holds the copy's parameters.
        references: lists of the object that point to the model's parameters.
    """

    def __init__(self, owner: object, attribute: str, model: nn.Module):
        super().__init__()
        self._owner, self._attribute, self._model = [owner], attribute, [model]
        self.container = vars(owner)[attribute]
        self.references = [
            value
            for value in vars(owner).values()
            if isinstance(value, list) and value and all(isinstance(each, ReferenceType) for each in value)
        ]
        self._trained = len(self.container) != len([*model.parameters()])
        frozen = {id(p) for p in model.parameters() if self._trained and not p.requires_grad}

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            value = tensor.detach().clone()
            return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value

        self.module = double(model, copied)
        self._apart = {name for name, p in model.named_parameters() if id(p) in frozen}
        self.pull()

    def pull(self) -> None:
        """Take what the object holds now: it may have loaded a state, or moved to another device."""
        self.container = vars(self._owner[0])[self._attribute]
        own, values = self._own(), self.container
        if len(own) != len(values):
            raise _misfit(self._owner[0], f"{len(own)} tensors in its {self._attribute}", f"{len(values)}")
        for place, (name, parameter) in enumerate(own.items()):
            value = values[name if isinstance(values, dict) else place]
            if value is not parameter:
                parameter.data = value.detach()
        self.push()

    def push(self) -> None:
        """Have the object hold the copy's parameters, as many as there are now."""
        own = self._own()
        if isinstance(self.container, dict):
            self.container.clear()
            self.container.update(own)
        else:
            self.container[:] = own.values()
        theirs = [p for n, p in self._model[0].named_parameters() if n in own]
        for references in self.references:
            references[:] = [ref(parameter) for parameter in theirs]

    def _own(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if name not in self._apart}


def _held_by(owner: object, model: nn.Module) -> nn.Module:
    held = getattr(owner, "__dict__", {})
    modules = [value for value in held.values() if isinstance(value, nn.Module)]
    copies = {id(copy): copy for module in modules for copy in _copies(module, model)}
    if len(copies) == 1:
        return next(iter(copies.values()))
    names = [name for name, value in held.items() if _is_average(value, model)]
    names = [name for name in names if "shadow" in name] or names
    if copies or len(names) != 1:
        raise _misfit(
            owner,
            "a copy of the model, an object that holds one, or one that holds a list of its averaged parameters",
            f"{len(copies)} copies and {len(names)} lists in a {type(owner).__name__}",
        )
    return Shadows(owner, names[0], model)


def _copies(tree: nn.Module, model: nn.Module) -> Iterator[nn.Module]:
    """The modules in a tree that are like the model, and not it."""
    names = [name for name, _ in model.named_parameters()]
    for module in tree.modules():
        if type(module) is type(model) and module is not model and [n for n, _ in module.named_parameters()] == names:
            yield module


def _is_average(value: Any, model: nn.Module) -> bool:
    """Whether a list or a dictionary has a tensor for each of the model's parameters, or for each that is trained."""
    parameters = dict(model.named_parameters())
    for expected in (parameters, {name: p for name, p in parameters.items() if p.requires_grad}):
        if isinstance(value, Mapping) and value.keys() == expected.keys():
            value = [value[name] for name in expected]
        if isinstance(value, list) and len(value) == len(expected) > 0:
            pairs = zip(value, expected.values(), strict=True)
            return all(isinstance(t, torch.Tensor) and t is not p and t.shape == p.shape for t, p in pairs)
    return False


def _misfit(owner: object, expected: str, found: str) -> MorphError:
    return MorphError("ema is of the wrong kind", where=type(owner).__name__, expected=expected, found=found)

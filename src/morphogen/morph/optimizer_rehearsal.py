"""A step of an optimizer rehearsed on a throwaway copy: what state it keeps, where, and how it begins."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import first_line
from ..machine.private import bare_step
from ..machine.randomness import own_random
from .optimizer_state import Begins, cannot_follow, check_state, fits, tensors_in

LARGEST = 128
"""Sizes of the throwaway's parameters end here: optimizers that factor or quantise do so from sizes below this on."""


def rehearse_step(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> Begins:
    """Take two steps with a copy of an optimizer, on small random parameters, and look at what it keeps.

    The optimizer, its parameters and the random numbers stay as they are.

    Args:
        optimizer: any.
        names: those of its parameters that will change, come or go.

    Raises:
        MorphError: it keeps something else of them than scalars and tensors of their shapes.
    """
    kind = type(optimizer).__name__
    chosen = [p for group in optimizer.param_groups for p in _chosen(group["params"], names)]
    if not chosen:
        return {}
    for attribute, value in vars(optimizer).items():
        if attribute in ("state", "param_groups") or attribute.endswith("_hooks"):  # hooks are other people's
            continue
        shapes = {tuple(tensor.shape) for tensor in tensors_in(value, {*map(id, names)}) if tensor.numel() > 1}
        known = shapes & {tuple(p.shape) for p in names}
        if known:
            raise cannot_follow(kind, names[chosen[0]], f"its own attribute '{attribute}' of shape {min(known)}")
    failure: Exception = RuntimeError()
    with (
        own_random(chosen[0].device),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),  # an optimizer that compiles itself takes a minute
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for fresh, closure in ((True, False), (True, True), (False, False), (False, True)):
            throwaway = _Throwaway(optimizer, chosen, names)
            try:
                throwaway.make(fresh)
                throwaway.take_steps(closure)
            except Exception as error:  # whatever the optimizer's own code raises, called in another way than its own
                failure = error
                continue
            return throwaway.begins()
    warnings.warn(
        f"no step of {kind} can be rehearsed ({first_line(failure)}): what is new of "
        "its state will begin at zero, and what cannot follow is refused when the network changes",
        stacklevel=3,
    )
    return {}


class _Throwaway:
    """A copy of an optimizer that holds small random parameters in the place of the user's."""

    def __init__(self, optimizer: Optimizer, chosen: Sequence[nn.Parameter], names: Mapping[nn.Parameter, str]):
        self._original, self._names = optimizer, names
        self._of = {parameter: _stand_in(parameter) for parameter in chosen}
        self._copy: Any = object.__new__(type(optimizer))
        self._states = _States()
        self._before: set[int] = set()

    def make(self, fresh: bool) -> None:
        """Copy all that the optimizer is made of; its state only where it is not to begin afresh."""
        groups, attributes = self._original.param_groups, vars(self._original)
        memo: dict[int, Any] = {id(self._original): self._copy, id(self._original.state): self._states}
        for group in groups:
            held = [p for p in group["params"] if p in self._of] or [*self._of]
            memo |= {id(p): self._of.get(p, self._of[held[0]]) for p in group["params"]}
        own = vars(self._copy)
        own["state"], own["param_groups"] = self._states, [self._group(group, memo) for group in groups]
        for name, value in attributes.items():
            if name not in own and name != "step":  # which a learning-rate schedule replaces by one of this very object
                own[name] = OrderedDict() if name.endswith("_hooks") else copy.deepcopy(value, memo)
        for key, value in () if fresh else self._original.state.items():
            stand_in = self._of.get(key) if isinstance(key, nn.Parameter) else None
            if stand_in is not None:
                self._states[stand_in] = _Recorder(stand_in)
                for name, entry in value.items():
                    self._states[stand_in].take(name, *_cut(entry, key, stand_in))
            elif not isinstance(key, torch.Tensor):
                self._states[key] = copy.deepcopy(value, memo)
        self._before = {id(tensor) for value in own.values() for tensor in tensors_in(value)}

    def _group(self, group: Mapping[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
        places = [place for place, parameter in enumerate(group["params"]) if parameter in self._of]
        settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        mine = {"params": [self._of[group["params"][place]] for place in places], **copy.deepcopy(settings, memo)}
        if "param_names" in group:
            mine["param_names"] = [group["param_names"][place] for place in places]
        return mine

    def take_steps(self, closure: bool) -> None:
        """Two of them, by random gradients or by a closure whose gradients can be differentiated again."""
        held = [p for group in self._copy.param_groups for p in group["params"]]
        factors = [(torch.randn_like(p), torch.randn_like(p)) for p in held]

        def evaluate() -> torch.Tensor:
            for parameter in held:
                parameter.grad = None
            total = sum((p * p * a + p * b).sum() for p, (a, b) in zip(held, factors, strict=True))
            assert isinstance(total, torch.Tensor)
            total.backward(create_graph=True)
            return total

        for first in (True, False):
            before = [p.detach().clone() for p in held]
            if closure:
                evaluate()
            else:
                for parameter in held:
                    parameter.grad = torch.randn_like(parameter)
            bare_step(self._copy)(self._copy, *([evaluate] if closure else []))
            for parameter, was in zip(held, before, strict=True):
                parameter.grad = None
                state = self._states.get(parameter)
                if first and isinstance(state, _Recorder):
                    state.compare(was, parameter.detach())

    def begins(self) -> Begins:
        """What was found; raises MorphError where something cannot follow."""
        kind, names = type(self._original).__name__, {id(s): self._names[p] for p, s in self._of.items()}
        known = {*names, *self._before}
        for parameter in self._of.values():
            said = f" after a step rehearsed with shape {tuple(parameter.shape)}"
            own = {f"its attribute {key}": [value] for key, value in vars(parameter).items()}
            for state in (self._states.get(parameter, {}), own):
                check_state(kind, names[id(parameter)], parameter, state, said)
        first = next(iter(names.values()))
        elsewhere = {f"state of {key!r}": value for key, value in self._states.items() if id(key) not in names}
        for number, group in enumerate(self._copy.param_groups):
            elsewhere |= {f"group {number}, '{key}'": value for key, value in group.items() if key != "params"}
        apart = ("state", "param_groups")
        elsewhere |= {f"attribute '{key}'": value for key, value in vars(self._copy).items() if key not in apart}
        for where, value in elsewhere.items():
            found = [t for t in tensors_in(value, known) if t.numel() > 1]
            if found:
                raise cannot_follow(
                    kind, first, f"{where}, not kept with its parameter, of shape {tuple(found[0].shape)}"
                )
        states = [self._states[p] for p in self._of.values() if isinstance(self._states.get(p), _Recorder)]
        return {key: begin for state in states for key, begin in state.begins.items()}


class _Recorder(dict[str, Any]):
    """The state of one parameter, that notes how each entry begins."""

    def __init__(self, parameter: torch.Tensor):
        super().__init__()
        self._parameter, self.begins = parameter, Begins()

    def __setitem__(self, key: str, value: Any) -> None:
        self.take(key, value, self._parameter.detach())

    def take(self, key: str, value: Any, weights: torch.Tensor) -> None:
        """Hold a value, which may begin as weights."""
        if key not in self.begins and isinstance(value, torch.Tensor) and value.ndim:
            self.begins[key] = None if _is_copy(value, weights) else _constant(value)
        super().__setitem__(key, value)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def compare(self, *weights: torch.Tensor) -> None:
        """What is a copy of the weights after the first step began as one, whatever memory it was put into."""
        for key, value in self.items():
            if isinstance(value, torch.Tensor) and any(_is_copy(value, each) for each in weights):
                self.begins[key] = None


class _States(defaultdict[Any, Any]):
    """The state of an optimizer, whose parameters' parts are recorders."""

    def __missing__(self, key: Any) -> Any:
        self[key] = {}
        return self[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, torch.Tensor) and isinstance(value, dict) and not isinstance(value, _Recorder):
            recorder = _Recorder(key)
            recorder.update(value)
            value = recorder
        super().__setitem__(key, value)


def _chosen(parameters: Sequence[nn.Parameter], names: Mapping[nn.Parameter, str]) -> list[nn.Parameter]:
    """The largest and the smallest parameter of each number of axes and kind; two at least, where there are two."""
    kinds = defaultdict[Any, list[nn.Parameter]](list)
    for parameter in parameters:
        if parameter in names and parameter.numel():
            kinds[parameter.ndim, parameter.dtype, parameter.device].append(parameter)
    ends = [(min(each, key=torch.numel), max(each, key=torch.numel)) for each in kinds.values()]
    return list(dict.fromkeys(parameter for pair in ends for parameter in reversed(pair)))


def _stand_in(parameter: nn.Parameter) -> nn.Parameter:
    """A small random parameter with as many axes, of which no two are of one size: a shape tells the axes apart."""
    sizes: list[int] = []
    for of_it in parameter.shape:
        size = min(max(of_it, 2), LARGEST)
        step = 64 if size >= 64 else 1  # blocks of optimizers that quantise divide it as well as before
        while size in sizes:
            size += step
        sizes.append(size)
    stand_in = nn.Parameter(torch.randn(sizes, dtype=parameter.dtype, device=parameter.device))
    vars(stand_in).update({k: v for k, v in vars(parameter).items() if not isinstance(v, torch.Tensor)})
    return stand_in


def _cut(value: Any, parameter: torch.Tensor, stand_in: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """An entry of a parameter's state, and the weights that it may be a copy of, at the size of the stand-in."""

    def small(tensor: torch.Tensor) -> torch.Tensor:
        for dim, size in enumerate(stand_in.shape):
            tensor = tensor.index_select(dim, torch.arange(size, device=tensor.device) % tensor.shape[dim])
        return tensor.clone()

    if not fits(value, parameter):
        return copy.deepcopy(value), stand_in.detach()
    return small(value.detach()), small(parameter.detach())


def _is_copy(value: torch.Tensor, weights: torch.Tensor) -> bool:
    same = value.shape == weights.shape and value.dtype.is_floating_point == weights.dtype.is_floating_point
    return same and torch.equal(value.detach(), weights.to(value)) and value.numel() > 1


def _constant(value: torch.Tensor) -> float:
    """What a tensor is filled with; 0 where it is no constant, and began as a gradient."""
    first = value.detach().flatten()[:1]
    if value.is_complex() or not len(first) or not bool((value.detach() == first).all()):
        return 0.0
    return float(first) if bool(first.isfinite()) else 0.0

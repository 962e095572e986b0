"""A script's own checkpoints: what `model.state_dict()` and `optimizer.state_dict()` hold says its size, and brings the
network to that size where it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..dense.network import Network
from ..dense.subnet import SubNetwork, within
from ..errors import CheckpointError
from ..machine.private import ASSIGNS
from .moments import check_moments
from .state import (
    FORMAT,
    bring_to,
    check_origin,
    describe,
    factors_in,
    history_from,
    notes_of,
    prepared,
    progress_from,
    reading,
    states_of,
    subnetwork_from,
    take_away,
    take_origin,
    what_is_away,
)
from .values import as_data

if TYPE_CHECKING:
    from .run import Run

KEY = "morphogen"
"""Under this name the notes travel: in the metadata of a module's state dict, and in an optimizer's state dict."""


class Followed:
    """The model, or an averaged copy, and its state dicts.

    Attributes:
        handles: of the hooks.
    """

    def __init__(self, run: Run, tree: nn.Module, hook: Callable[[Callable[..., Any]], Any]):
        self._run, self._tree = run, tree
        self.handles: list[Any] = [
            tree.register_state_dict_post_hook(hook(self._saved)),
            tree.register_load_state_dict_pre_hook(hook(self._loads)),
        ]

    def _saved(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        if module is self._tree and not self._run.has_own_state:
            notes = notes_of(self._run)
            metadata[KEY] = notes
            # Scripts that build another dictionary of the tensors lose the metadata, but not what hangs on a tensor.
            first = state.get(prefix + next(iter(self._run.network.structure.tensors), ""))
            if first is not None and not isinstance(first, nn.Parameter):
                setattr(first, KEY, notes)

    def _loads(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any) -> None:
        if module is self._tree and not self._run.has_own_state:
            self._run.following.change(partial(self._come, module, state, prefix, metadata, *_), self._run)

    def _come(
        self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], strict: bool, *_: Any
    ) -> None:
        run = self._run
        if module is run.network.model and not run.ended and metadata.pop(ASSIGNS, False):
            raise CheckpointError(
                "assign=True puts other parameters into the model than those that the optimizer trains",
                where=type(module).__name__,
                expected="model.load_state_dict(state) without assign=True, or with it before attach",
            )
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        notes = next(
            (found for found in (metadata.get(KEY), *(getattr(t, KEY, None) for t in own.values())) if found), None
        )
        with reading():
            if notes is not None and notes["format"] == FORMAT and _is_of(run, notes):
                target = subnetwork_from(run.network, notes["current"])
            else:
                notes, target = None, _by_shapes(run, own)
            if target is not None and target != run.network.current:
                _check_fits(run.network, target, own, strict)
            load = _parts_from(run, notes) if module is run.network.model and not _is_there(run, notes) else None
        before = run.network.current
        _bring(run, target, factors_in(run.network, list(own)))
        if load is not None:
            load()
        elif run.network.current != before:
            for part in run.assembly:
                part.came_to(run.network.current)


class FollowedOptimizer:
    """An optimizer of the model, and its state dicts.

    Attributes:
        handles: of the hooks.
    """

    def __init__(self, run: Run, optimizer: Optimizer, hook: Callable[[Callable[..., Any]], Any]):
        self._run, self._optimizer = run, optimizer
        self.handles: list[Any] = [
            optimizer.register_state_dict_post_hook(hook(self._saved)),
            optimizer.register_load_state_dict_pre_hook(hook(self._loads)),
        ]

    def _saved(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        run = self._run
        if optimizer is not self._optimizer or run.has_own_state:
            return
        names = run.following.names
        state[KEY] = notes_of(run) | {
            "constants": dict(run.network.constants),
            **what_is_away(run.network),
            "initial": {name: list(pair) for name, pair in run.network.initial.items()},
            "names": [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups],
            "parts": states_of(run) if optimizer is run.followers[1][0] else None,
        }

    def _loads(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        if optimizer is self._optimizer and not self._run.has_own_state:
            self._run.following.change(partial(self._come, optimizer, state), self._run)

    def _come(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        run = self._run
        notes = state.get(KEY)
        if notes is None or notes.get("format") != FORMAT or not _is_of(run, notes):
            self._check_moments(state, [p for group in optimizer.param_groups for p in group["params"]])
            return
        with reading():
            target = subnetwork_from(run.network, notes["current"])
            load = _parts_from(run, notes)
            groups = [list(map(str, names)) for names in notes["names"]]
            self._check_groups(groups)
            check_origin(run, notes)
            _bring(run, target, [])
            parameters = {name: parameter for parameter, name in run.following.names.items()}
            held = [[parameters[name] for name in names] for names in groups]
        ours = [set(map(id, group["params"])) for group in optimizer.param_groups]
        if ours != [set(map(id, parameters)) for parameters in held]:
            raise CheckpointError(
                f"{type(optimizer).__name__} holds other parameters, or in other groups, than when it was saved",
                expected=" and ".join(f"{len(names)} parameters" for names in groups),
                found=" and ".join(f"{len(each)}" for each in ours),
            )
        self._check_moments(state, [parameter for parameters in held for parameter in parameters])
        take_origin(run, notes)
        take_away(run.network, notes)
        for group, parameters, names in zip(optimizer.param_groups, held, groups, strict=True):
            group["params"][:] = parameters  # their order is that of the saved moments
            if "param_names" in group:
                group["param_names"][:] = names
        if load is not None:
            load()

    def _check_groups(self, groups: list[list[str]]) -> None:
        """Before anything is changed: as many groups, and none of what is held now in another one."""
        ours = self._optimizer.param_groups
        names = self._run.following.names
        home = {name: number for number, group in enumerate(groups) for name in group}
        moved = [
            names[parameter]
            for number, group in enumerate(ours)
            for parameter in group["params"]
            if home.get(names[parameter], number) != number
        ]
        if len(ours) != len(groups) or moved:
            raise CheckpointError(
                f"{type(self._optimizer).__name__} has other parameter groups than when it was saved",
                where=moved[0] if moved else "",
                expected=f"{len(groups)} groups",
                found=f"{len(ours)}",
            )

    def _check_moments(self, state: Mapping[str, Any], parameters: list[torch.Tensor]) -> None:
        """PyTorch would take moments of any shape and kind, and fail in the next step."""
        for number, entry in state.get("state", {}).items():
            for key, value in entry.items() if isinstance(entry, Mapping) else ():
                if not isinstance(value, torch.Tensor) or value.ndim == 0 or not isinstance(number, int):
                    continue
                if number >= len(parameters) or (value.numel() > 1 and value.shape != parameters[number].shape):
                    raise CheckpointError(
                        f"the state of {type(self._optimizer).__name__} is of another size of the network",
                        where=f"'{key}' of parameter {number}",
                        expected=f"shape {tuple(parameters[number].shape)}" if number < len(parameters) else "none",
                        found=f"shape {tuple(value.shape)}",
                        todo="Load the model's state first, as it was saved together with this one",
                    )
        for group in state.get("param_groups", []):
            numbers = [number for number in group["params"] if number < len(parameters)]
            entries = {f"parameter {n}": (state.get("state", {}).get(n), parameters[n]) for n in numbers}
            check_moments(self._optimizer, entries, cast=True)


def _is_of(run: Run, notes: Mapping[str, Any]) -> bool:
    return notes["dense"] == run.network.structure.fingerprint()


def _is_there(run: Run, notes: Mapping[str, Any] | None) -> bool:
    """Whether a run is where notes say, and its parts may hold more: an average swapped in, the model after its
    optimizer."""
    here = {"progress": run.progress(), "current": as_data(run.network.current)}
    return notes is not None and all(notes[key] == value for key, value in here.items())


def _parts_from(run: Run, notes: Mapping[str, Any] | None) -> Callable[[], None] | None:
    """What brings the parts where the notes of the same run have them; None where the notes are of another one."""
    if notes is None:
        run.state_was_loaded()
        return None
    if notes["parts"] is None:
        return None
    if (notes["method"], notes["epochs"]) != (describe(run.method), run.epochs):
        if run.assembly.shrinks:
            raise CheckpointError(
                "the state is of a run with another method or length, and does not say what was pruned",
                expected=f"{describe(run.method)}, {run.epochs} epochs",
                found=f"{notes['method']}, {notes['epochs']} epochs",
                todo="Attach with the method and length that it was saved with",
            )
        return None
    loads = prepared(run, notes["parts"])
    history = history_from(run.network, notes)
    progress = progress_from(notes)

    def load() -> None:
        run.history = history
        with run.own_state():
            for each in loads:
                each()
        run.state_was_loaded(progress)

    return load


def _bring(run: Run, target: SubNetwork | None, factors: list[str]) -> None:
    if target is not None and (target != run.network.current or factors):
        with run.own_state():
            run.close()
            bring_to(run, target, factors)
        run.has_another_size()


def _by_shapes(run: Run, tensors: Mapping[str, torch.Tensor]) -> SubNetwork | None:
    """The size of tensors that came without notes, among those that the run knows; None where they fit as they are.

    Raises:
        CheckpointError: none has these shapes.
    """
    network = run.network
    known = [network.current, *(subnetwork for _, subnetwork in reversed(run.history)), *run.possible, network.dense]
    misfits = {each: _misfit(network, each, tensors) for each in dict.fromkeys(known)}
    fitting = [each for each, (misfit, _) in misfits.items() if misfit is None]
    if network.current in fitting and all(misfits[each][1] for each in fitting):
        return None  # a part of a state
    if not fitting:
        raise CheckpointError(
            "the state is of no size that this network has had, or will have",
            where=misfits[network.current][0] or "",
            expected="a state of this run, or of the dense network",
        )
    found = min(fitting, key=lambda each: misfits[each][1])
    seen = [network.current, *(subnetwork for _, subnetwork in run.history)]
    if found not in seen and any(units != (*range(len(units)),) for units in found.channels.values()):
        raise CheckpointError(
            "the state does not say which channels it has, and they are chosen by importance",
            expected="model.state_dict() with its metadata, or the optimizer's state loaded first",
        )
    return found


def _check_fits(network: Network, subnetwork: SubNetwork, tensors: Mapping[str, torch.Tensor], strict: bool) -> None:
    """Before the size changes: what PyTorch would refuse afterwards.

    Raises:
        CheckpointError: a tensor of another shape or kind; with `strict`, one that is missing or unknown.
    """
    where, missing = _misfit(network, subnetwork, tensors)
    known = network.fake.dense.state_dict()
    for name, tensor in tensors.items():
        if name in known and where is None and tensor.is_complex() != known[name].is_complex():
            where = name
        if strict and where is None and name not in known and not factors_in(network, [name]):
            where = name
    if where is not None or (strict and missing):
        raise CheckpointError(
            "the state is not of the network that it says, or not all of it",
            where=where or "",
            expected="what model.state_dict() gave",
            found="" if where else f"{missing} tensors less",
        )


def _misfit(network: Network, subnetwork: SubNetwork, tensors: Mapping[str, torch.Tensor]) -> tuple[str | None, int]:
    """The first tensor that does not belong to a sub-network, and how many of the sub-network's are missing."""
    alive = network.structure.alive_mask(subnetwork)
    shapes, missing = network.grids.at(subnetwork.resolution).shapes, 0
    absent, kept = frozenset(network.structure.absent(subnetwork)), network.fake.dense.state_dict().keys()
    for name, layout in network.structure.tensors.items():
        out = within(name, absent)
        tensor = tensors.get(name)
        if tensor is None:
            missing += not out and name in kept
        elif out or tuple(tensor.shape) != tuple(layout.alive_shape(alive, shapes.get(name))):
            return name, missing
    return None, missing

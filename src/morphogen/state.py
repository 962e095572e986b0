"""A run as plain data and tensors, between two of its steps, and back onto one that was attached afresh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from .batching import Batching
from .errors import CheckpointError, ConfigError, SubNetworkError
from .export.weights import check_tensors
from .methods import Method
from .momentum import MomentumNetwork
from .morph.commit import averaged, morph
from .morph.drop_path import lay_out_drop_path
from .morph.exchange import put_factors
from .morph.rezero import FACTOR, has_factor
from .network import Network
from .program import first_line
from .pruning.pruner import Pruner
from .schedule.stages import Regularisation, Stage
from .search.candidates import Found
from .search.searching import Searching
from .snapshot import (
    Snapshot,
    check_optimizer,
    load_optimizer,
    load_tree,
    momentum_from,
    momentum_state,
    optimizer_state,
    parameter_names,
    tree_state,
)
from .subnet import SubNetwork

FORMAT = "morphogen run 1"


class Resumable(Protocol):
    """What of a run is saved and brought back, see `Attached`."""

    network: Network
    method: Method
    stages: Sequence[Stage]
    epochs: int
    pruner: Pruner | None
    batching: Batching | None
    momentum: MomentumNetwork | None
    searching: Searching | None
    searches: list[Found]
    history: list[tuple[int, SubNetwork]]
    revisions: list[tuple[int, str]]
    _stage: Stage | None
    _epoch: int
    _left: SubNetwork
    _kept: Snapshot | None

    def _followers(self) -> tuple[list[nn.Module], list[Optimizer]]: ...

    def stages_after(self, found: Sequence[SubNetwork], revisions: Sequence[tuple[int, str]]) -> list[Stage]:
        """See `Attached`."""
        ...

    def regularisation(self, epoch: int) -> Regularisation:
        """See `Attached`."""
        ...

    def close(self) -> None:
        """See `Attached`."""
        ...


def state_of(run: Resumable) -> dict[str, Any]:
    """See `Attached.state_dict`."""
    trees, optimizers = run._followers()
    names = parameter_names(run.network.model)
    return {
        "format": FORMAT,
        "dense": run.network.structure.fingerprint(),
        "method": describe(run.method),
        "epochs": run.epochs,
        "epoch": run._epoch,
        "current": run.network.current.to_dict(),
        "left": run._left.to_dict(),
        "history": [[epoch, subnetwork.to_dict()] for epoch, subnetwork in run.history],
        "searches": [found.record() for found in run.searches],
        "revisions": [list(revision) for revision in run.revisions],
        "stage": None if run._stage is None else list(run.stages).index(run._stage),
        "initial": {name: list(pair) for name, pair in run.network.initial.items()},
        "constants": dict(run.network.constants),
        "trees": [tree_state(tree) for tree in trees],
        "optimizers": [optimizer_state(optimizer, names) for optimizer in optimizers],
        "momentum": momentum_state(run.momentum),
        "coefficient": None if run.pruner is None else run.pruner.coefficient,
        "batching": None if run.batching is None else run.batching.state_dict(),
        "searching": None if run.searching is None else run.searching.state_dict(),
        "kept": None if run._kept is None else run._kept.state_dict(),
    }


def restore(run: Resumable, state: Mapping[str, Any]) -> None:
    """See `Attached.load_state_dict`."""
    try:
        plan = _Plan(run, state)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ConfigError, SubNetworkError) as error:
        raise CheckpointError(
            f"the state of the run is damaged ({first_line(error)})",
            expected="what run.state_dict() gave",
        ) from error
    plan.carry_out()


def describe(method: Method) -> str:
    """A method and its settings, the same in every process: operators of the user's own go by their names."""

    def told(value: Any) -> str:
        if isinstance(value, Method):
            return describe(value)
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(told, value))}]"
        plain = value is None or isinstance(value, (str, int, float, bool))
        return repr(value) if plain else str(getattr(value, "__name__", type(value).__name__))

    fields = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    return f"{type(method).__name__}({', '.join(f'{f.name}={told(getattr(method, f.name))}' for f in fields)})"


class _Plan:
    """Everything that is to be done, read and checked before the first of it is done."""

    def __init__(self, run: Resumable, state: Mapping[str, Any]):
        self.run, self.state = run, state
        self.trees, self.optimizers = run._followers()
        network = run.network
        if state["format"] != FORMAT:
            raise CheckpointError(
                "written by another version of Morphogen",
                expected=FORMAT,
                found=str(state["format"]),
                todo="Go on with that version, or begin anew",
            )
        for what, theirs, ours in (
            ("model", state["dense"], network.structure.fingerprint()),
            ("method", state["method"], describe(run.method)),
            ("length, in epochs,", state["epochs"], run.epochs),
        ):
            if theirs != ours:
                raise CheckpointError(
                    f"the run that was saved has another {what}", expected=_short(ours), found=_short(theirs)
                )
        self.current, self.left = (_subnetwork(network, state[key]) for key in ("current", "left"))
        self.history = [(int(epoch), _subnetwork(network, data)) for epoch, data in state["history"]]
        self.searches = [Found.from_record(record) for record in state["searches"]]
        self.revisions = [(int(epoch), str(option)) for epoch, option in state["revisions"]]
        self.stages = run.stages_after([found.subnetwork for found in self.searches], self.revisions)
        self.stage: Stage | None = None if state["stage"] is None else self.stages[state["stage"]]
        self.epoch = int(state["epoch"])
        self.factors = sorted(
            name.rpartition(".")[0]
            for name in state["trees"][0]["state"]
            if name.rpartition(".")[2] == FACTOR and name not in network.structure.tensors
        )
        self._check(self.current, state)
        self.kept: SubNetwork | None = None
        if (kept := state["kept"]) is not None:
            self.kept = _subnetwork(network, kept["subnetwork"])
            self._check(self.kept, kept)
        for key, there in (("batching", run.batching), ("coefficient", run.pruner)):
            if there is None and state[key] is not None:
                raise CheckpointError("the run that was saved was attached with another batch size", where=key)
        if run.batching is not None and run.batching.first != (first := int(state["batching"]["first"])):
            raise CheckpointError(
                "the run that was saved has another first batch on each rank, from which its mini-batch grew",
                expected=f"{run.batching.first} images",
                found=f"{first}",
                todo="Go on with as many ranks as before",
            )
        if state["searching"] is not None and (self.stage is None or not self.stage.candidates):
            raise ValueError("a search in a stage without candidates")
        self.initial = {str(name): (float(mean), float(std)) for name, (mean, std) in state["initial"].items()}
        known = network.constants
        if {n: (t.shape, t.dtype) for n, t in known.items()} != {
            n: (t.shape, t.dtype) for n, t in state["constants"].items()
        }:
            raise CheckpointError(
                "the run that was saved had other parameters frozen",
                expected="the same requires_grad as when it was attached",
            )

    def _check(self, subnetwork: SubNetwork, state: Mapping[str, Any]) -> None:
        """Refuse tensors or optimizers that are not those of a sub-network of this run."""
        network = self.run.network
        if len(state["trees"]) != len(self.trees) or len(state["optimizers"]) != len(self.optimizers):
            raise CheckpointError(
                "the run that was saved has other averaged copies or optimizers",
                expected=f"{len(self.trees) - 1} and {len(self.optimizers)}, as attached",
                found=f"{len(state['trees']) - 1} and {len(state['optimizers'])}",
            )
        copies = [] if state["momentum"] is None else [("module.", state["momentum"]["state"])]
        for tree, saved in zip(self.trees, state["trees"], strict=True):
            copies.append(("" if averaged(tree) is tree else "module.", saved["state"]))
        for prefix, tensors in copies:
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            plain = {n: t for n, t in own.items() if n.rpartition(".")[0] not in self.factors or not n.endswith(FACTOR)}
            check_tensors(plain, network, subnetwork)
        names = parameter_names(network.model)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            check_optimizer(optimizer, names, saved, whole=False)

    def carry_out(self) -> None:
        """Bring the run to the state."""
        run, state, network = self.run, self.state, self.run.network
        run.close()
        run.stages, run._stage, run._epoch = self.stages, self.stage, self.epoch
        run.history, run.searches, run._left = self.history, self.searches, self.left
        run.revisions = self.revisions
        network.initial = self.initial
        with torch.no_grad():
            for name, value in state["constants"].items():
                network.constants[name].copy_(value)
        run.momentum = run._kept = None
        if self.kept is not None:
            self._go_to(self.kept)
            run._kept = Snapshot(network, self.trees, self.optimizers, None)
            run._kept.load_state_dict(state["kept"])
        self._go_to(self.current)
        put_factors(self.factors, [averaged(tree) for tree in self.trees], self.optimizers)
        run.momentum = momentum_from(state["momentum"], network.model)
        for tree, saved in zip(self.trees, state["trees"], strict=True):
            load_tree(tree, saved)
        names = parameter_names(network.model)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, names, saved)
        if run.pruner is not None:
            run.pruner.coefficient = state["coefficient"]
        if run.batching is not None:
            run.batching.load_state_dict(state["batching"])
        network.drop_path_scale = run.regularisation(max(0, self.epoch)).drop_path
        lay_out_drop_path(network)
        if state["searching"] is not None and self.stage is not None:
            run.searching = Searching(network, self.stage)
            run.searching.load_state_dict(state["searching"])

    def _go_to(self, subnetwork: SubNetwork) -> None:
        if subnetwork != self.run.network.current or any(map(has_factor, self.run.network.model.modules())):
            morph(self.run.network, subnetwork, optimizer=self.optimizers, ema=self.trees[1:], operator="random")


def _subnetwork(network: Network, data: Mapping[str, Any]) -> SubNetwork:
    subnetwork = SubNetwork.from_dict(data)
    network.check(subnetwork)
    return subnetwork


def _short(value: object) -> str:
    """A hash is told by its beginning."""
    text = str(value)
    return text[:12] if len(text) == 64 and " " not in text else text

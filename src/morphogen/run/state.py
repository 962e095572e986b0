"""A run as plain data and tensors, between two of its steps, and back onto one that was attached afresh."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..dense.whole import overwrite
from ..errors import CheckpointError, first_line
from ..export.weights import check_tensors
from ..morph.averages import averaged
from ..morph.away import read_away, state_of_away
from ..morph.commit import morph
from ..morph.exchange import put_factors
from ..morph.rezero import FACTOR, has_factor
from .moments import check_groups, check_moments
from .values import as_data, check_equal, check_optimizer, load_optimizer, load_tree, optimizer_state, tree_state

if TYPE_CHECKING:
    from .part import Part
    from .run import Run

FORMAT = "morphogen run 2"


def state_of(run: Run) -> dict[str, Any]:
    """See `Run.state_dict`: what a run is made of, and the states of its parts."""
    trees, optimizers = run.followers
    names = run.following.names
    return {
        **_what(run),
        "initial": {name: list(pair) for name, pair in run.network.initial.items()},
        "constants": dict(run.network.constants),
        **what_is_away(run.network),
        "trees": [tree_state(tree) for tree in trees],
        "optimizers": [optimizer_state(optimizer, names) for optimizer in optimizers],
        "parts": states_of(run),
    }


def notes_of(run: Run) -> dict[str, Any]:
    """What run this is, where it is, and as much of its parts as plain data can hold; JSON types."""
    return _what(run) | {"parts": {name: part.notes() for name, part in run.assembly.named().items()}}


def _what(run: Run) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dense": run.network.structure.fingerprint(),
        "method": describe(run.method),
        "epochs": run.epochs,
        "progress": run.progress(),
        "current": as_data(run.network.current),
        "history": [[epoch, as_data(subnetwork)] for epoch, subnetwork in run.history],
    }


def what_is_away(network: Network) -> dict[str, Any]:
    """What is kept for operators that restore, where there is anything."""
    return {"away": state_of_away(network)} if network.away else {}


def take_away(network: Network, state: Mapping[str, Any]) -> None:
    """Keep what a state says is kept; the network has that state's size."""
    away = read_away(network, state.get("away", {}))
    if network.away is not None and away.keys() != network.away.keys():
        raise CheckpointError(
            "the state lacks what is to come back as it was, or has more of it",
            expected=f"{len(network.away)} tensors",
            found=f"{len(away)}",
        )
    if network.away is not None:
        network.away = away


def states_of(run: Run, without: Part | None = None) -> dict[str, Any]:
    """The states of the parts, by name."""
    return {name: part.state_dict() for name, part in run.assembly.named().items() if part is not without}


def restore(run: Run, state: Mapping[str, Any]) -> None:
    """See `Run.load_state_dict`."""
    with reading(), run.own_state():
        _Plan(run, state).carry_out()
        check_equal(state, state_of(run))


@contextmanager
def reading() -> Iterator[None]:
    """Whatever a damaged state raises is one kind of error."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"the state of the run is damaged ({first_line(error)})", expected="what run.state_dict() gave"
        ) from error


def describe(value: Any) -> str:
    """A method and its settings, the same in every process: operators of the user's own go by their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        settings = ", ".join(f"{f.name}={describe(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({settings})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe, value))}]"
    plain = value is None or isinstance(value, (str, int, float, bool))
    return repr(value) if plain else str(getattr(value, "__name__", type(value).__name__))


def prepared(run: Run, states: Mapping[str, Any], without: Part | None = None) -> list[Callable[[], None]]:
    """What brings each part to its state, all of them read and checked."""
    parts = {name: part for name, part in run.assembly.named().items() if part is not without}
    if parts.keys() != states.keys():
        raise CheckpointError(
            "the run that was saved has other parts",
            expected=", ".join(parts) or "none",
            found=", ".join(states) or "none",
        )
    return [part.prepare(states[name]) for name, part in parts.items()]


def subnetwork_from(network: Network, data: Mapping[str, Any]) -> SubNetwork:
    """Read a sub-network; raises SubNetworkError where it is none of this network."""
    subnetwork = SubNetwork.from_dict(data)
    network.check(subnetwork)
    return subnetwork


def progress_from(state: Mapping[str, Any]) -> dict[str, float]:
    """Where a run is, see `Watch.progress`."""
    progress = {key: int(state["progress"][key]) for key in ("epoch", "steps", "usual", "wrong")}
    progress |= {"peak": float(state["progress"]["peak"])}
    last = math.inf if state["progress"]["ended"] else state["epochs"] - 1
    steps = [progress[key] for key in ("steps", "usual", "peak")]
    if not (-1 <= progress["epoch"] <= last and all(0 <= number < math.inf for number in steps)):
        raise CheckpointError(
            "the state is of no place in this run",
            expected=f"an epoch from -1 to {last}, and numbers of steps from 0",
            found=f"{progress}",
        )
    return progress


def history_from(network: Network, state: Mapping[str, Any]) -> list[tuple[int, SubNetwork]]:
    """The stages so far, see `Run.history`."""
    history = [(int(epoch), subnetwork_from(network, data)) for epoch, data in state["history"]]
    starts = [epoch for epoch, _ in history]
    if any(not 0 <= epoch <= state["epochs"] for epoch in starts):
        raise CheckpointError("a stage of the state is at no epoch", expected="epochs of the run", found=f"{starts}")
    return history


def check_same_run(run: Run, state: Mapping[str, Any]) -> None:
    """Refuse the state of another model, method or length."""
    if state["format"] != FORMAT:
        raise CheckpointError(
            "written by another version of Morphogen",
            expected=FORMAT,
            found=str(state["format"]),
            todo="Continue with that version, or start over",
        )
    for what, theirs, ours in (
        ("model", state["dense"], run.network.structure.fingerprint()),
        ("method", state["method"], describe(run.method)),
        ("length, in epochs,", state["epochs"], run.epochs),
    ):
        if theirs != ours:
            raise CheckpointError(
                f"the run that was saved has another {what}", expected=_short(ours), found=_short(theirs)
            )


def factors_in(network: Network, names: Sequence[str]) -> list[str]:
    """The modules that have ReZero's factor in a state with tensors of these names."""
    return sorted(
        name.rpartition(".")[0]
        for name in names
        if name.rpartition(".")[2] == FACTOR and name not in network.structure.tensors
    )


def bring_to(run: Run, subnetwork: SubNetwork, factors: Sequence[str]) -> None:
    """Change the size of all, for values that come next."""
    trees, optimizers = run.followers
    if subnetwork != run.network.current or any(map(has_factor, run.network.model.modules())):
        morph(run.network, subnetwork, optimizer=optimizers, ema=trees[1:], operator="random")
    put_factors(factors, [averaged(tree, run.network.model) for tree in trees], optimizers)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a run holds at a sub-network, to go back to.

    Attributes:
        subnetwork: where the network is again before the rest is restored.
        trees, optimizers: of the model and its averages, and of its optimizers.
        away: what is out of it, see `what_is_away`.
        parts: states of the other parts, by name.
    """

    subnetwork: SubNetwork
    trees: list[dict[str, Any]]
    optimizers: list[dict[str, Any]]
    away: dict[str, Any]
    parts: dict[str, Any]
    _asks: Part

    @staticmethod
    def of(run: Run, without: Part) -> Snapshot:
        """Copies of all; the part that asks keeps its own state."""
        (trees, optimizers), names = run.followers, run.following.names
        return Snapshot(
            run.network.current,
            copy.deepcopy([tree_state(tree) for tree in trees]),
            copy.deepcopy([optimizer_state(optimizer, names) for optimizer in optimizers]),
            what_is_away(run.network),
            copy.deepcopy(states_of(run, without)),
            without,
        )

    def restore(self, run: Run) -> None:
        """Bring everything back."""
        run.go_to(self.subnetwork)
        take_away(run.network, self.away)
        with run.own_state():
            load_values(run, self.trees, self.optimizers)
            for load in prepared(run, self.parts, self._asks):
                load()

    def state_dict(self) -> dict[str, Any]:
        """As plain data and tensors."""
        return {
            "subnetwork": self.subnetwork.to_dict(),
            "trees": self.trees,
            "optimizers": self.optimizers,
            **self.away,
            "parts": self.parts,
        }

    @staticmethod
    def from_state(run: Run, state: Mapping[str, Any], asks: Part) -> Snapshot:
        """The inverse, checked; raises CheckpointError."""
        subnetwork = subnetwork_from(run.network, state["subnetwork"])
        check_values(run, subnetwork, state)
        prepared(run, state["parts"], asks)
        away = {"away": state["away"]} if "away" in state else {}
        read_away(run.network, state.get("away", {}))
        return Snapshot(subnetwork, list(state["trees"]), list(state["optimizers"]), away, dict(state["parts"]), asks)


def load_values(run: Run, trees: Sequence[Mapping[str, Any]], optimizers: Sequence[Mapping[str, Any]]) -> None:
    """Weights, buffers and moments, where all has the right size."""
    ours, names = run.followers, run.following.names
    for tree, saved in zip(ours[0], trees, strict=True):
        load_tree(tree, saved)
    for optimizer, saved in zip(ours[1], optimizers, strict=True):
        load_optimizer(optimizer, names, saved)


def check_values(run: Run, subnetwork: SubNetwork, state: Mapping[str, Any]) -> None:
    """Refuse tensors or optimizers that are not those of a sub-network of this run."""
    network, (trees, optimizers) = run.network, run.followers
    if len(state["trees"]) != len(trees) or len(state["optimizers"]) != len(optimizers):
        raise CheckpointError(
            "the run that was saved has other averaged copies or optimizers",
            expected=f"{len(trees) - 1} and {len(optimizers)}, as attached",
            found=f"{len(state['trees']) - 1} and {len(state['optimizers'])}",
        )
    prefixes = [_prefix(tree, averaged(tree, network.model)) for tree in trees]
    copies = [(prefix, saved["state"]) for prefix, saved in zip(prefixes, state["trees"], strict=True)]
    averages = [part["network"] for part in state["parts"].values() if part.get("network") is not None]
    copies += [("module.", average["state"]) for average in averages]
    factors = factors_in(network, list(state["trees"][0]["state"]))
    for prefix, tensors in copies:
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        plain = {n: t for n, t in own.items() if n.rpartition(".")[0] not in factors or not n.endswith(FACTOR)}
        check_tensors(plain, network, subnetwork)
    names = run.following.names
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        check_optimizer(optimizer, names, saved, whole=False)
        weights = state["trees"][0]["state"]
        check_groups(optimizer, [group["settings"] for group in saved["groups"]])
        for group in saved["groups"]:
            check_moments(optimizer, {n: (saved["state"].get(n), weights.get(n)) for n in group["parameters"]})


def _prefix(tree: nn.Module, inner: nn.Module) -> str:
    """What stands before the names of a copy of the model inside an average."""
    path = next(path for path, module in tree.named_modules() if module is inner)
    return f"{path}." if path else ""


def check_origin(run: Run, state: Mapping[str, Any]) -> None:
    """Refuse a state of a network that began with other parts frozen."""
    ours, theirs = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in constants.items()}
        for constants in (run.network.constants, state["constants"])
    )
    if ours != theirs:
        raise CheckpointError(
            "the run that was saved had other parameters frozen",
            expected="the same requires_grad as when it was attached",
        )
    drawn = {name: (float(mean), float(std)) for name, (mean, std) in state["initial"].items()}
    finite = all(math.isfinite(mean) and 0 <= std < math.inf for mean, std in drawn.values())
    read_away(run.network, state.get("away", {}))
    if drawn.keys() != run.network.initial.keys() or not finite:
        raise CheckpointError("what new blocks are drawn from is damaged", expected="mean and deviation of each tensor")


def take_origin(run: Run, state: Mapping[str, Any]) -> None:
    """What comes back of frozen parts and constant buffers, and what blocks that begin at random are drawn from."""
    network = run.network
    network.initial = {str(name): (float(mean), float(std)) for name, (mean, std) in state["initial"].items()}
    for name, value in state["constants"].items():
        overwrite(network.constants[name], value)


class _Plan:
    """Everything that is to be done, read and checked before the first of it is done."""

    def __init__(self, run: Run, state: Mapping[str, Any]):
        self.run, self.state, network = run, state, run.network
        check_same_run(run, state)
        self.current = subnetwork_from(network, state["current"])
        self.history = history_from(network, state)
        self.progress = progress_from(state)
        self.ended = bool(state["progress"]["ended"])
        self.factors = factors_in(network, list(state["trees"][0]["state"]))
        check_values(run, self.current, state)
        self.parts = prepared(run, state["parts"])
        check_origin(run, state)

    def carry_out(self) -> None:
        """Bring the run to the state."""
        run = self.run
        run.close()
        run.history, run.ended = self.history, self.ended
        take_origin(run, self.state)
        bring_to(run, self.current, self.factors)
        take_away(run.network, self.state)
        load_values(run, self.state["trees"], self.state["optimizers"])
        for load in self.parts:
            load()
        run.state_was_loaded(self.progress)


def _short(value: object) -> str:
    """A hash is told by its beginning."""
    text = str(value)
    return text[:12] if len(text) == 64 and " " not in text else text

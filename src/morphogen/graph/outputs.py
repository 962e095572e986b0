"""Which of a model's outputs matter: one that does keeps its size, the others come out at the size that runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..dense.subnet import is_inside
from ..errors import TraceError
from ..machine.private import TreeSpec

Outputs = str | int | Iterable[str | int] | None
"""Names, keys or positions of outputs, `"decoder.logits"` for one inside another; None for `Output.matter`."""

GOALS = frozenset({"loss", "losses", "logits", "pred", "preds", "prediction", "predictions", "predicted", "sample"})
"""A word of the name of an output that losses and metrics read."""

STATES = ("last_hidden_state", "pooler_output", "embeds")
"""How the names of outputs end that matter where none of those above is beside them."""

INSIDES = ("hidden_states", "attentions", "past_key_values")
"""How the names of outputs end that show the inside of a network, and matter where there is nothing else."""


@dataclass(frozen=True)
class Output:
    """One output of a model.

    Attributes:
        place: among what the model returns, tensors inside others counted with those.
        path: the names and positions that lead to it, joined by dots; empty where the model returns one tensor.
    """

    place: int
    path: str

    def __str__(self) -> str:
        return f"output {self.path} of the model" if self.path else "output of the model"

    def is_meant(self, name: str | int) -> bool:
        """Whether the user means it, or what it is inside of."""
        return self.place == name if isinstance(name, int) else is_inside(self.path, name)


def outputs_of(program: torch.export.ExportedProgram) -> list[Output]:
    """The outputs of an exported model, in the order in which the graph returns them."""
    spec = program.call_spec.out_spec
    if spec is None or spec.is_leaf():
        return [Output(0, "")]
    return [
        Output(place, ".".join((name, *path)))
        for place, (name, child) in enumerate(_children(spec))
        for path in _paths(child)
    ]


def _paths(spec: TreeSpec) -> Iterator[tuple[str, ...]]:
    if spec.is_leaf():
        yield ()
        return
    for name, child in _children(spec):
        yield from ((name, *path) for path in _paths(child))


def _children(spec: TreeSpec) -> list[tuple[str, TreeSpec]]:
    """What is inside a container, by its names (a dictionary's keys, the fields of a named tuple or dataclass)."""
    children, context = spec.children(), spec.context
    for names in (context, getattr(context, "_fields", None), *(context if isinstance(context, list) else ())):
        if isinstance(names, (list, tuple)) and len(names) == len(children) and all(map(_is_key, names)):
            return list(zip(map(str, names), children, strict=True))
    return [(str(place), child) for place, child in enumerate(children)]


def _is_key(name: Any) -> bool:
    return isinstance(name, (str, int))


def mattering(outputs: Sequence[Output], asked: Outputs) -> list[Output]:
    """The outputs that matter: those the user names, or, with None, by their names, all where these say nothing."""
    if asked is not None:
        return [each for each in outputs if any(map(each.is_meant, _names(asked)))]
    names = [each.path.split(".") for each in outputs]
    has_goal = any(not GOALS.isdisjoint(part.split("_")) for path in names for part in path)
    beside = INSIDES + STATES if has_goal else INSIDES
    found = [each for each, path in zip(outputs, names, strict=True) if not any(p.endswith(beside) for p in path)]
    return found or list(outputs)


def check_outputs(outputs: Iterable[Output], asked: Outputs) -> None:
    """Raise TraceError for names of outputs that the model does not have."""
    known = list(outputs)
    names = None if asked is None else _names(asked)
    unknown = [name for name in names or () if not any(each.is_meant(name) for each in known)]
    if unknown or names == []:
        raise TraceError(
            "no such output of the model" if unknown else "no output of the model matters",
            where=f"outputs={asked!r}",
            expected="some of " + ", ".join(dict.fromkeys(each.path or "0" for each in known)),
        )


def _names(asked: str | int | Iterable[str | int]) -> list[str | int]:
    return [asked] if isinstance(asked, (str, int)) else list(asked)

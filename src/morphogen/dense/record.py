"""The ops of one forward pass on fake tensors, as an export has them, for an eighth of what an export costs.

What cannot be recorded can often be exported, and an op whose result nobody reads is recorded where an export leaves it
out. So where a record is not what was expected, an export has the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..machine.private import ops_seen, tree_flatten, tree_leaves, tree_map
from ..machine.randomness import drawn_so_far
from .double import named_tensors
from .fake import FakeModel, make_ready
from .program import bind, calls, module_path, output_shapes

TRAINING = frozenset({"training", "train", "dropout_p"})
"""Arguments of ops that say whether the model trains."""

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


@dataclass(frozen=True)
class Ran:
    """One op that ran: its target, the innermost module that ran it, what it was given, and what shapes it returned."""

    target: Any
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    made: tuple[torch.Tensor, ...] = ()


def exported(program: torch.export.ExportedProgram) -> Iterator[Ran]:
    """The ops of an exported program."""
    for node in calls(program.graph_module):
        yield Ran(node.target, module_path(node), node.args, dict(node.kwargs), output_shapes(node))


class Record:
    """A forward pass.

    Attributes:
        given: parameters, buffers, plain tensors and inputs, by name or number.
        ops: what ran, in order.
        result: what the model returned.
        draws: whether the model's code drew random numbers of Python or NumPy, by which it may choose what it runs.
    """

    def __init__(
        self, fake: FakeModel, model: nn.Module, inputs: Inputs, within: AbstractContextManager[Any] | None = None
    ):
        """Raises whatever the model's own code raises on fake inputs; `within` is where the model is called."""
        self.given = [*named_tensors(model).items(), *enumerate(tree_leaves(inputs))]
        self.ops: list[Ran] = []
        self._call = fake, model, inputs
        self._open: list[str] = []
        args, kwargs = inputs
        with ExitStack() as hooks, fake.running(), ops_seen(self._note), within or nullcontext():
            for path, module in model.named_modules():
                hooks.callback(module.register_forward_pre_hook(self._begin(path), prepend=True).remove)
                hooks.callback(module.register_forward_hook(self._end).remove)
            before = drawn_so_far()
            self.result = model(*args, **kwargs)
            self.draws = drawn_so_far() != before

    def _begin(self, path: str) -> Any:
        return lambda module, args: self._open.append(path)

    def _end(self, *_: Any) -> None:
        self._open.pop()

    def _note(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        single = isinstance(result, torch.Tensor)
        made = (result,) if single else tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        path = self._open[-1] if self._open else ""
        self.ops.append(Ran(target, path, args, kwargs, tuple(tuple(tensor.shape) for tensor in made), made))

    def flow(self) -> list[Any]:
        """Of each op its target, path and shapes, and its arguments, with where each tensor among them came from.

        Last, where what the model returns came from. Ops on single numbers, and arguments that say whether the model
        trains, are left out.
        """
        known: dict[int, Any] = {id(tensor): name for name, tensor in self.given if isinstance(tensor, torch.Tensor)}

        def origin(value: Any) -> Any:
            return known.setdefault(id(value), ("found", len(known))) if isinstance(value, torch.Tensor) else value

        flow: list[Any] = []
        for op in self.ops:
            given = {name: value for name, value in bind(op.target, op.args, op.kwargs).items() if name not in TRAINING}
            step = (op.target, op.path, op.shapes, tree_map(origin, given))
            taken = [tuple(leaf.shape) for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]
            if not (on_numbers(taken) and on_numbers(op.shapes)):
                flow.append(step)
                step = len(flow)
            known |= {id(tensor): (step, place) for place, tensor in enumerate(op.made)}
        leaves, form = tree_flatten(self.result)
        return [*flow, (tree_map(origin, leaves), form)]

    def same_in_training(self) -> bool:
        """Whether the model, which ran in evaluation mode, runs the same ops on the same tensors in training mode.

        Not known, and so denied, of inputs with a batch of one, to which training adds another. Sets `draws` where it
        does in training mode.
        """
        fake, model, inputs = self._call
        if any(isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == 1 for leaf in tree_leaves(inputs)):
            return False
        try:
            evaluation = self.flow()
            make_ready(model, training=True)
            training = Record(fake, model, inputs)
            self.draws |= training.draws
            return evaluation == training.flow() and not training.draws
        except Exception:  # whatever the model's own code raises in training alone
            return False


def on_numbers(shapes: Iterable[tuple[int, ...]]) -> bool:
    """Whether all of some tensors are single numbers, which have no channels."""
    return not any(shapes)

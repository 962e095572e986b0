"""One forward pass on fake tensors, watched: which modules were called, with what, and what happened between them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..dense.caches import Cached, find_caches, find_stale, tables
from ..dense.fake import FakeModel
from ..dense.program import failing_module
from ..dense.record import Record
from ..dense.subnet import HandsOn
from ..errors import TraceError, first_line
from ..machine.private import TreeSpec, tree_flatten, tree_leaves, tree_map

BATCH = 2
"""Examples in the batch that is watched: few, because blocks are tried out on numbers of that size."""

GIVEN = -1
"""The time at which parameters and buffers were made."""


@dataclass(eq=False)
class Block:
    """One call of a module.

    Attributes:
        path, module, arguments: what was called, with what.
        start, stop: when, on the watch's clock.
        taken, made: for each thing it was called with and returned (flattened), the number of its value; None where
            it is no tensor.
        outputs, output: what it returned, and the form of that.
        form: what makes it interchangeable with others (see `alike.py`).
    """

    path: str
    module: nn.Module
    arguments: tuple[Any, Any]
    start: int
    taken: tuple[int | None, ...]
    stop: int = 0
    made: tuple[int | None, ...] = ()
    outputs: list[Any] = field(default_factory=list)
    output: TreeSpec | None = None
    form: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Any]:
        """What it was called with, flattened."""
        return tree_leaves(self.arguments)

    @property
    def parent(self) -> str:
        """The path of the module that holds it."""
        return self.path.rpartition(".")[0]

    @property
    def is_plain_layer(self) -> bool:
        """One of PyTorch's own layers, or something without parameters."""
        module = self.module
        inside = next(module.children(), None) is not None
        own = next(module.parameters(recurse=False), None) is not None
        return not inside and (not own or type(module).__module__.startswith("torch.nn."))


@dataclass
class Unit:
    """Blocks that are called in one turn of a loop.

    Attributes:
        path: of the child of the container that holds them, or of the first of them.
        blocks: in the order in which they are called.
        hands_on: what each hands on when it is out, so that the following unit is given what this one is; None for
            the last unit.
        needed: the blocks that must do nothing so that the unit does nothing.
        trouble: why it cannot leave.
    """

    path: str
    blocks: tuple[Block, ...]
    hands_on: tuple[HandsOn, ...] | None = None
    needed: tuple[bool, ...] = ()
    trouble: str | None = None

    @property
    def parent(self) -> str:
        """The path of the module that holds it."""
        return self.path.rpartition(".")[0]

    @property
    def position(self) -> int | None:
        """The number it has among its siblings, where it has one."""
        key = self.path.rpartition(".")[2]
        return int(key) if key.isdigit() else None

    @property
    def kind(self) -> tuple[type, ...]:
        """The types of its blocks."""
        return tuple(type(block.module) for block in self.blocks)


@dataclass(frozen=True, eq=False)
class Op:
    """One call of PyTorch: its name, when it was, and the values it took and made, by number; `rest` is what else it
    was given."""

    name: str
    time: int
    taken: tuple[int, ...]
    made: tuple[int, ...]
    rest: tuple[Any, ...]


class Watch(TorchFunctionMode):
    """What happens in a forward pass. A value is a tensor between two writes into it.

    Attributes:
        blocks: the calls of modules, in the order in which they ended.
        ops: the calls of PyTorch, in order.
        born: for each value the time since which it is known.
        record: the ops that they led to.
        caches: what it left in the modules.
        stale: what an earlier call of the model had left there, for other inputs.
    """

    record: Record
    caches: tuple[Cached, ...]
    stale: tuple[str, ...]

    def __init__(self, model: nn.Module):
        super().__init__()
        self.blocks: list[Block] = []
        self.ops: list[Op] = []
        self.born: list[int] = []
        self._clock = 0
        self._numbers: dict[int, tuple[torch.Tensor, int]] = {}
        self._open: list[Block] = []
        for tensor in [*model.parameters(), *model.buffers()]:
            self._renew(tensor, GIVEN)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _renew(self, tensor: torch.Tensor, time: int) -> int:
        """A new value is in this tensor."""
        self.born.append(time)
        number = len(self.born) - 1
        self._numbers[id(tensor)] = tensor, number  # kept, so that its id is not given to another
        return number

    def _number(self, leaf: Any) -> int | None:
        if not isinstance(leaf, torch.Tensor):
            return None
        known = self._numbers.get(id(leaf))
        return self._renew(leaf, self._clock) if known is None else known[1]

    def begin(self, path: str, dense: nn.Module) -> Callable[..., None]:
        """A hook for the call of a module, which is `dense` in the dense network."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = tree_map(lambda leaf: leaf, (args, kwargs))  # lists as they are now: the module may append to them
            taken = tuple(map(self._number, tree_leaves(given)))
            self._open.append(Block(path, dense, given, self._tick(), taken))

        return hook

    def end(self, module: nn.Module, args: Any, result: Any) -> None:
        """The module that was called last returns."""
        block = self._open.pop()
        block.outputs, block.output = tree_flatten(result)
        block.made = tuple(map(self._number, block.outputs))
        block.stop = self._tick()
        self.blocks.append(block)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call, and note what it took and made."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # a property
            return func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        taken = tuple(number for leaf in leaves if (number := self._number(leaf)) is not None)
        result = func(*args, **kwargs)
        time = self._tick()
        written = [args[0]] if name == "__setitem__" else [kwargs["out"]] if "out" in kwargs else []
        in_place = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
        made = []
        for leaf in [*tree_leaves(result), *written]:
            if isinstance(leaf, torch.Tensor):
                same = not in_place and not written and any(leaf is other for other in leaves)
                made.append(self._numbers[id(leaf)][1] if same else self._renew(leaf, time))
        rest = tuple(leaf for leaf in leaves if not isinstance(leaf, torch.Tensor))
        self.ops.append(Op(name, time, taken, tuple(made), rest))
        return result


def watch(fake: FakeModel) -> Watch:
    """Watch a forward pass of the dense network in evaluation mode.

    Raises:
        TraceError: it cannot run on fake tensors.
    """
    try:
        return _watched(fake, fake.double(training=False), BATCH)
    except Exception:  # whatever the model's own code raises where not every input is a batch
        model = fake.double(training=False)
        try:
            return _watched(fake, model, None)
        except Exception as error:  # whatever the model's own code raises without numbers in its inputs
            raise TraceError(
                f"a copy of the model on fake tensors cannot run ({first_line(error)})",
                where=failing_module(model, error),
                expected="a forward pass that reads no numbers out of tensors, and a model that copy.deepcopy "
                "copies whole (without __slots__)",
                todo="Keep the numbers in tensors, or trace a submodule",
            ) from error


def _watched(fake: FakeModel, model: nn.Module, batch: int | None) -> Watch:
    seen, before, inputs = Watch(model), tables(model), fake.inputs(None, batch)
    with ExitStack() as hooks:
        for path, module in fake.dense.named_modules():
            watched = model.get_submodule(path)
            hooks.callback(watched.register_forward_pre_hook(seen.begin(path, module), with_kwargs=True).remove)
            hooks.callback(watched.register_forward_hook(seen.end).remove)
        seen.record = Record(fake, model, inputs, within=seen)
    after = tables(model)

    def again() -> dict[str, torch.Tensor]:
        with fake.running():
            model(*inputs[0], **inputs[1])
        return tables(model)

    seen.caches = find_caches(fake.dense, model, again)
    seen.stale = find_stale(before, after, again)
    return seen

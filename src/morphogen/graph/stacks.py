"""Block stacks: runs of blocks of one type, with the same tensors, each feeding the next.

Found by watching one forward pass on fake tensors: which modules were called, with what, and what they
returned. Names and types of models play no part.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..dense.double import plain_tensors
from ..dense.fake import FakeModel
from ..dense.program import failing_module
from ..dense.subnet import BlockStack, DropPath, FixedBlock, is_inside, within
from ..errors import TraceError, first_line
from ..machine.private import NormBase, TreeSpec, tree_flatten, tree_leaves
from .residual import Residual
from .silence import can_be_silent

LONGEST_PERIOD = 4
"""Blocks of a repeating pattern (Swin: 2) that may enter and leave together."""

KEPT_BY_PYTORCH = frozenset(vars(nn.Module()))

Branches = Mapping[str, Residual | None]
"""For each module, its residual branches."""


@dataclass
class _Block:
    """One call of a module that is no plain layer."""

    path: str
    module: nn.Module
    arguments: tuple[Any, Any]
    outputs: list[Any]
    output: TreeSpec
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
    def position(self) -> int | None:
        """The number it has among its siblings, where it has one."""
        key = self.path.rpartition(".")[2]
        return int(key) if key.isdigit() else None


def find_stacks(
    fake: FakeModel, model: nn.Module, branches: Branches, read: Collection[str]
) -> tuple[tuple[BlockStack, ...], tuple[FixedBlock, ...]]:
    """The block stacks of a model in its order, and the blocks beside them that stay, with the reason.

    Args:
        fake, model: the model.
        branches: see `Branches`.
        read: the names of its tensors that the forward pass reads.
    """
    calls = _watch(fake)
    shared = _shared_paths(model)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    buffers |= {name: tensor for name, tensor in plain_tensors(model).items() if name in read}
    stacks: list[BlockStack] = []
    fixed: list[FixedBlock] = []
    for chain in _chains(calls):
        reasons: dict[int, str] = {}
        start = 0
        for block in chain:
            block.form = _form(block)
        while start < len(chain):
            period, repeats = _longest_run(chain, start, shared, buffers, reasons)
            if repeats < 2:
                fixed.append(FixedBlock(chain[start].path, reasons.get(start, "the last of its kind")))
                start += 1
                continue
            run = chain[start : start + period * repeats]
            stacks.append(_stack(run, period, model, branches))
            start += len(run)
    outer = [
        stack
        for stack in stacks
        if not any(within(stack.blocks[0], frozenset(other.blocks)) for other in stacks if other is not stack)
    ]
    order = {path: i for i, (path, _) in enumerate(model.named_modules())}
    inside = frozenset(path for stack in outer for path in stack.blocks)
    beside = [
        block for block in fixed if not within(block.path, inside) and (not outer or _is_beside(block.path, outer))
    ]
    return (
        tuple(sorted(outer, key=lambda stack: order[stack.blocks[0]])),
        tuple(sorted(beside, key=lambda block: order[block.path])),
    )


def _watch(fake: FakeModel) -> list[_Block]:
    """All calls of modules with submodules, in order."""
    calls: list[_Block] = []

    def note(path: str, dense: nn.Module):
        def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            outputs, form = tree_flatten(result)
            calls.append(_Block(path, dense, (args, kwargs), outputs, form))

        return hook

    def run(model: nn.Module, batch: int | None) -> None:
        for path, module in fake.dense.named_modules():
            if path and not _is_plain_layer(module):
                model.get_submodule(path).register_forward_hook(note(path, module), with_kwargs=True)
        with torch.no_grad():
            fake.run(model, None, batch)

    try:
        run(fake.double(training=False), 2)  # small, since blocks are tried out on real numbers of that size
    except Exception:  # whatever the model's own code raises where not every input is a batch
        calls.clear()
        model = fake.double(training=False)
        try:
            run(model, None)
        except Exception as error:
            raise TraceError(
                f"a copy of the model on fake tensors cannot run ({first_line(error)})",
                where=failing_module(model, error),
                expected="a forward pass that reads no numbers out of tensors, and a model that copy.deepcopy "
                "copies whole (without __slots__)",
                todo="Keep the numbers in tensors, or trace a submodule",
            ) from error
    return calls


def _is_plain_layer(module: nn.Module) -> bool:
    """One of PyTorch's own layers, or something without parameters."""
    inside = next(module.children(), None) is not None
    own = next(module.parameters(recurse=False), None) is not None
    return not inside and (not own or type(module).__module__.startswith("torch.nn."))


def _shared_paths(model: nn.Module) -> frozenset[str]:
    """Modules with tensors, and tensors, that are in the model at several places."""
    places: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if next(module.parameters(), None) is not None:
            places.setdefault(id(module), []).append(path)
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            places.setdefault(id(tensor), []).append(f"{path}.{name}")
    return frozenset(path for paths in places.values() if len(paths) > 1 for path in paths)


def _chains(calls: list[_Block]) -> Iterable[list[_Block]]:
    """Runs of calls of one type, each of which is given all that the one before returned."""
    times: dict[str, int] = {}
    producers: dict[int, list[_Block]] = {}
    follower: dict[str, _Block] = {}
    for block in calls:
        times[block.path] = times.get(block.path, 0) + 1
    once = [block for block in calls if times[block.path] == 1]
    followers: set[str] = set()
    for block in once:
        before = {
            candidate.path: candidate
            for leaf in block.inputs
            if isinstance(leaf, torch.Tensor)
            for candidate in producers.get(id(leaf), [])
            if type(candidate.module) is type(block.module) and candidate.parent == block.parent
        }
        for candidate in before.values():
            if candidate.path not in follower and _passes(candidate, block) is not None:
                follower[candidate.path] = block
                followers.add(block.path)
                break
        for leaf in block.outputs:
            if isinstance(leaf, torch.Tensor):
                producers.setdefault(id(leaf), []).append(block)
    for block in once:
        if block.path in follower and block.path not in followers:
            chain = [block]
            while chain[-1].path in follower:
                chain.append(follower[chain[-1].path])
            yield chain


def _passes(block: _Block, following: _Block) -> tuple[int, ...] | None:
    """For each thing a block returns, where the following block takes it; None where it does not."""
    slots = []
    for leaf in block.outputs:
        if leaf is None:
            slots.append(-1)
            continue
        tensor = isinstance(leaf, torch.Tensor)
        inputs = following.inputs
        found = [i for i, x in enumerate(inputs) if (x is leaf if tensor else type(x) is type(leaf) and x == leaf)]
        if not found:
            return None
        slots.append(len(slots) if len(slots) in found else found[0])  # (x, h, w) may have h equal to w
    return tuple(slots)


def _form(block: _Block) -> dict[str, Any]:
    """What makes blocks interchangeable: types, tensors, and plain attributes, by their path inside."""
    form: dict[str, Any] = {}
    for path, module in block.module.named_modules():
        if drop_path_attribute(module) is not None or type(module) is nn.Identity:
            continue  # stochastic depth differs from block to block, and is absent where its rate is 0
        form[f"{path}:type"] = type(module)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            form[f"{path}.{name}"] = None if tensor is None else (tuple(tensor.shape), tensor.dtype)
        for name, value in vars(module).items():
            if name not in KEPT_BY_PYTORCH:
                plain = all(leaf is None or isinstance(leaf, (bool, int, float, str)) for leaf in tree_leaves(value))
                form[f"{path}.{name}"] = value if plain else type(value)
    return form


def drop_path_attribute(module: nn.Module) -> str | None:
    """The attribute in which a module of stochastic depth keeps its rate; None for any other module."""
    if "DropPath" in type(module).__name__ or "StochasticDepth" in type(module).__name__:
        return next((name for name in ("drop_prob", "p") if hasattr(module, name)), None)
    return None


def _difference(a: _Block, b: _Block, buffers: Mapping[str, torch.Tensor]) -> str | None:
    """Why two blocks are not interchangeable."""
    for key in {**a.form, **b.form}:
        left, right = a.form.get(key), b.form.get(key)
        if left != right and not (type(left) is int and left == a.position and right == b.position):
            name = key.strip(".:")
            return f"{name} is {_short(left)} in {a.path} and {_short(right)} in {b.path}"
    for path, module in a.module.named_modules():
        if not isinstance(module, NormBase):  # running statistics are learned, like weights
            for key in [*module._buffers, *vars(module)]:
                name = f"{path}.{key}".lstrip(".")
                left, right = buffers.get(f"{a.path}.{name}"), buffers.get(f"{b.path}.{name}")
                if left is None or right is None:
                    continue
                if left.is_meta:
                    return f"the buffer {name} has no values yet (device meta)"
                if not torch.equal(left, right):
                    return f"the buffer {name} is another in {a.path} than in {b.path}"
    return None


def _short(value: Any) -> str:
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.dtype):
        return f"of shape {value[0]}"
    return "missing" if value is None else repr(value)


def _longest_run(
    chain: list[_Block],
    start: int,
    shared: frozenset[str],
    buffers: Mapping[str, torch.Tensor],
    reasons: dict[int, str],
) -> tuple[int, int]:
    """Period and number of repeats of the longest run of interchangeable units that begins at `start`."""
    best = (1, 1)
    common = [next((path for path in shared if is_inside(path, block.path)), None) for block in chain]
    if common[start] is not None:
        reasons[start] = f"{common[start]} is shared with another part of the model"
        return best
    for period in range(1, LONGEST_PERIOD + 1):
        length = period
        while start + length < len(chain):
            why = _difference(chain[start + length - period], chain[start + length], buffers)
            if why is None and common[start + length] is not None:
                why = f"{common[start + length]} is shared with another part of the model"
            if why is None and not _hands_on(chain[start + length]):
                why = "it returns another shape than it is given"
            if why is not None:
                if period == 1:
                    reasons[start] = why
                break
            length += 1
        repeats = length // period
        if repeats > 1 and period * repeats > best[0] * best[1] * (best[1] > 1):
            best = (period, repeats)
    run = chain[start : start + best[0] * best[1]]
    if best[1] > 1 and len({_passes(a, b) for a, b in itertools.pairwise(run)}) > 1:
        reasons[start] = "it is called in another way than its neighbours"
        return 1, 1
    return best


def _hands_on(block: _Block) -> bool:
    """Whether everything a block returns has the shape of something it was given."""
    given = {tuple(leaf.shape) for leaf in block.inputs if isinstance(leaf, torch.Tensor)}
    return all(tuple(leaf.shape) in given for leaf in block.outputs if isinstance(leaf, torch.Tensor))


def _stack(run: list[_Block], period: int, model: nn.Module, branches: Branches) -> BlockStack:
    passes = _passes(run[0], run[1])
    assert passes is not None
    units = [run[i : i + period] for i in range(0, len(run), period)]
    found = [branches.get(block.path) for block in run]
    known = [each for each in found if each is not None]
    silent = len(known) == len(run) and all(
        can_be_silent(block.module, block.arguments, passes, [name[len(block.path) + 1 :] for name in each.writers])
        for block, each in zip(units[0], known, strict=False)
    )
    return BlockStack(
        _name(run, model),
        tuple(tuple(block.path for block in unit) for unit in units),
        passes,
        run[0].output,
        tuple(tuple(drop for block in unit for drop in drop_path_of(block.module, block.path)) for unit in units),
        {name: alone for each in known for name, alone in each.writers.items()} if silent else None,
        tuple(
            tuple(branch for each in known[i : i + period] for branch in each.bottlenecks)
            for i in range(0, len(run), period)
        )
        if silent
        else (),
    )


def drop_path_of(tree: nn.Module, prefix: str = "") -> Iterable[DropPath]:
    """All stochastic depth in a module."""
    for path, module in tree.named_modules(prefix=prefix):
        attribute = drop_path_attribute(module)
        if attribute is not None:
            yield DropPath(path, attribute, float(getattr(module, attribute) or 0.0))


def _name(run: list[_Block], model: nn.Module) -> str:
    """The container's path, or the range of blocks where they are only a part of it."""
    parent = run[0].parent
    if parent and len(run) == sum(1 for _ in model.get_submodule(parent).children()):
        return parent
    return f"{run[0].path}..{run[-1].path.rpartition('.')[2]}"


def _is_beside(path: str, stacks: list[BlockStack]) -> bool:
    """Whether a block has the same parent as a stack's blocks."""
    parent = path.rpartition(".")[0]
    return any(stack.blocks[0].rpartition(".")[0] == parent for stack in stacks)

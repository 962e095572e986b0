"""Block stacks: runs of interchangeable blocks, each feeding the next.

Found by watching one forward pass on fake tensors: which modules were called, with what, and what they
returned. Names and types of models play no part.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable

import torch
from torch import nn

from ..dense.bypass import Bypass, replace_module
from ..dense.double import plain_tensors
from ..dense.fake import FakeModel
from ..dense.subnet import BlockStack, FixedBlock, HandsOn, is_inside, within
from .alike import difference, drop_path_of, form_of
from .loops import loops
from .residual import Branches
from .silence import can_be_silent
from .watch import Block, Unit, Watch

LONGEST_PERIOD = 4
"""Units of a repeating pattern (Swin: 2) that may enter and leave together."""


def find_stacks(
    fake: FakeModel, seen: Watch, model: nn.Module, branches: Branches, read: Collection[str]
) -> tuple[tuple[BlockStack, ...], tuple[FixedBlock, ...]]:
    """The block stacks of a model in its order, and the blocks beside them that stay, with the reason.

    Args:
        fake, seen, model: the model, and a forward pass of its double.
        branches: see `Branches`.
        read: the names of its tensors that the forward pass reads.
    """
    finder = _Finder(model, branches, read)
    for chain in _chains(seen):
        finder.read(chain)
    fed = list(finder.stacks)
    parents = frozenset(unit.rpartition(".")[0] for stack in fed for unit in stack.blocks)
    for chain in loops(seen, fake.dense, parents):
        finder.read(chain)
    added = [stack for stack in finder.stacks if stack not in fed and _runs(fake, stack)]
    # Of lists within lists, pairs in a long list are units; long lists in a list of stages are stacks.
    added = [s for s in added if not any(_holds(s, other) and other.size > s.size for other in [*fed, *added])]
    stacks = [*fed, *added]
    outer = [stack for stack in stacks if not any(_holds(other, stack) for other in stacks if other is not stack)]
    order = {path: i for i, (path, _) in enumerate(model.named_modules())}
    inside = frozenset(path for stack in outer for path in stack.blocks)
    beside = [
        block
        for block in finder.fixed
        if not within(block.path, inside)
        and (not outer or any(block.path.rpartition(".")[0] in finder.parents[stack.name] for stack in outer))
    ]
    return (
        tuple(sorted(outer, key=lambda stack: order[stack.blocks[0]])),
        tuple(sorted(beside, key=lambda block: order[block.path])),
    )


def _holds(stack: BlockStack, other: BlockStack) -> bool:
    """Whether a stack's blocks have another's inside, or are more than those."""
    theirs, mine = frozenset(other.blocks), frozenset(stack.blocks)
    return theirs < mine or (theirs != mine and all(within(path, mine) for path in theirs))


class _Finder:
    """Finds stacks in chains of units.

    Attributes:
        stacks: what was found.
        fixed: units that stay, with the reason.
        parents: for each stack by name, the modules that hold its units.
    """

    def __init__(self, model: nn.Module, branches: Branches, read: Collection[str]):
        self.stacks: list[BlockStack] = []
        self.fixed: list[FixedBlock] = []
        self.parents: dict[str, frozenset[str]] = {}
        self._model, self._branches = model, branches
        self._shared = _shared_paths(model)
        self._buffers = dict(model.named_buffers(remove_duplicate=False))
        self._buffers |= {name: tensor for name, tensor in plain_tensors(model).items() if name in read}

    def read(self, chain: list[Unit]) -> None:
        """Find the stacks in a chain."""
        reasons: dict[int, str] = {}
        start = 0
        for unit in chain:
            for block in unit.blocks:
                block.form = block.form or form_of(block.module)
        while start < len(chain):
            period, repeats = self._longest_run(chain, start, reasons)
            if repeats < 2:
                self.fixed.append(FixedBlock(chain[start].path, reasons.get(start, "the last of its kind")))
                start += 1
                continue
            run = chain[start : start + period * repeats]
            stack = self._stack(run, period)
            self.stacks.append(stack)
            self.parents[stack.name] = frozenset(_containers(run)) | {unit.parent for unit in run}
            start += len(run)

    def _longest_run(self, chain: list[Unit], start: int, reasons: dict[int, str]) -> tuple[int, int]:
        """Period and number of repeats of the longest run of interchangeable units that begins at `start`."""
        best = (1, 1)
        common = [
            next((path for path in self._shared for block in unit.blocks if is_inside(path, block.path)), None)
            for unit in chain
        ]
        if common[start] is not None:
            reasons[start] = f"{common[start]} is shared with another part of the model"
            return best
        for period in range(1, LONGEST_PERIOD + 1):
            length = period
            while start + length < len(chain):
                unit = chain[start + length]
                why = difference(chain[start + length - period], unit, self._buffers)
                if why is None and common[start + length] is not None:
                    why = f"{common[start + length]} is shared with another part of the model"
                why = why or unit.trouble
                if why is not None:
                    if period == 1:
                        reasons[start] = why
                    break
                length += 1
            repeats = length // period
            if repeats > 1 and period * repeats > best[0] * best[1] * (best[1] > 1):
                best = (period, repeats)
        period, repeats = best
        inner = chain[start : start + period * repeats - 1]
        if repeats > 1 and any(unit.hands_on != inner[i % period].hands_on for i, unit in enumerate(inner)):
            reasons[start] = "it is called in another way than its neighbours"
            return 1, 1
        return best

    def _stack(self, run: list[Unit], period: int) -> BlockStack:
        units = [[block for unit in run[i : i + period] for block in unit.blocks] for i in range(0, len(run), period)]
        first = run[:period]
        hands_on = tuple(each for unit in first for each in unit.hands_on or ())
        needed = tuple(each for unit in first for each in unit.needed)
        found = [
            [
                (block, how, self._branches.whole(block.path) if how.zero else self._branches.within(block.path))
                for block, how, wanted in zip(unit, hands_on, needed, strict=True)
                if wanted
            ]
            for unit in units
        ]
        known = [[branch for _, _, branch in unit if branch is not None] for unit in found]
        silent = list(map(len, known)) == list(map(len, found)) and all(
            can_be_silent(block.module, block.arguments, how, [name[len(block.path) + 1 :] for name in each.writers])
            for block, how, each in found[0]
            if each is not None
        )
        writers = {name: alone for unit in known for each in unit for name, alone in each.writers.items()}
        return BlockStack(
            _name(run, self._model),
            tuple(tuple(block.path for block in unit) for unit in units),
            hands_on,
            tuple(tuple(drop for block in unit for drop in drop_path_of(block.module, block.path)) for unit in units),
            writers if silent else None,
            tuple(tuple(branch for each in unit for branch in each.bottlenecks) for unit in known) if silent else (),
        )


def _containers(run: list[Unit]) -> list[str]:
    """The lists that a run's units come from."""
    own = run[0].path == run[0].blocks[0].path
    return list(dict.fromkeys(block.parent for block in run[0].blocks)) if own else [run[0].parent]


def _name(run: list[Unit], model: nn.Module) -> str:
    """The path of the list, or of several, with a range where the units are only a part of it."""
    lists = _containers(run)
    if lists[0] and len(run) == sum(1 for _ in model.get_submodule(lists[0]).children()):
        return "+".join(lists)
    return f"{run[0].path}..{run[-1].path.rpartition('.')[2]}"


def _runs(fake: FakeModel, stack: BlockStack) -> bool:
    """Whether the model runs with one unit of the stack."""
    model = fake.double(training=False)
    for path, hands_on in itertools.islice(stack.places, len(stack.units[0]), None):
        replace_module(model, path, Bypass(hands_on))
    try:
        with torch.no_grad():
            fake.run(model, None)
    except Exception:  # whatever the model's own code raises where a block returns something else
        return False
    return True


def _shared_paths(model: nn.Module) -> frozenset[str]:
    """Modules with tensors, and tensors, that are in the model at several places."""
    places: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if next(module.parameters(), None) is not None:
            places.setdefault(id(module), []).append(path)
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            places.setdefault(id(tensor), []).append(f"{path}.{name}")
    return frozenset(path for paths in places.values() if len(paths) > 1 for path in paths)


def _chains(seen: Watch) -> Iterable[list[Unit]]:
    """Runs of calls of one type, each of which is given all that the one before returned."""
    calls = [block for block in seen.blocks if block.path and not block.is_plain_layer]
    times: dict[str, int] = {}
    producers: dict[int, list[Block]] = {}
    follower: dict[str, Block] = {}
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
            yield [_unit(block, follower.get(block.path)) for block in chain]


def _unit(block: Block, following: Block | None) -> Unit:
    """A block that hands its input on to the following one."""
    passes = None if following is None else _passes(block, following)
    hands_on = None if passes is None else (HandsOn(passes, block.output),)
    given = {tuple(leaf.shape) for leaf in block.inputs if isinstance(leaf, torch.Tensor)}
    fits = all(tuple(leaf.shape) in given for leaf in block.outputs if isinstance(leaf, torch.Tensor))
    return Unit(block.path, (block,), hands_on, (True,), None if fits else "it returns another shape than it is given")


def _passes(block: Block, following: Block) -> tuple[int, ...] | None:
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

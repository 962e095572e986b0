"""Units of a loop that the model's own code runs: pairs, zipped lists, and blocks whose residual the loop adds.

    for attention, feed_forward in self.layers:
        x = attention(x) + x
        x = feed_forward(x) + x

A unit is what lies at one position of a list and is called there. It may leave if, with each of its blocks handing on
its input or zeros, the next unit is given what this one was given. That is read off the calls that were watched: values
are followed through additions, and through what makes zeros of zeros.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..dense.subnet import HandsOn
from .watch import Block, Op, Unit, Watch

ADD = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
PRODUCT = frozenset({"mul", "mul_", "__mul__", "__rmul__", "__imul__"})
SAME = frozenset({"clone", "contiguous", "detach", "to", "type", "type_as", "float", "half", "bfloat16", "double"})
ZERO_STAYS_ZERO = frozenset(
    """dropout dropout_ dropout1d dropout2d dropout3d feature_dropout div div_ __truediv__ __itruediv__ neg relu relu_
    gelu silu tanh hardswish view reshape permute transpose flatten unflatten squeeze unsqueeze swapaxes movedim
    expand __getitem__ roll narrow""".split()
)
"""Calls that make zeros of zeros in their first tensor."""

ZERO = "zero"
MOST_WAYS = 1024
"""Ways of a unit to be out (for each block an input of it, or zeros) that are tried."""

Way = tuple[tuple[int, bool], ...]
"""For each block of a unit, the input whose shape it returns, and whether it is that input or zeros."""


def loops(seen: Watch, model: nn.Module, skipped: frozenset[str]) -> Iterator[list[Unit]]:
    """Chains of units, each of which can be out.

    Args:
        seen: a forward pass.
        model: what was watched.
        skipped: modules whose children are in stacks already.
    """
    finder = _Finder(seen)
    lists = {path: finder.units(path, module) for path, module in model.named_modules() if path not in skipped}
    alone: dict[str, list[list[Unit]]] = {}
    for path, units in lists.items():
        alone[path] = list(finder.chains(units or []))
        yield from alone[path]
    for path, module in model.named_modules():
        places = [f"{path}.{name}".lstrip(".") for name, _ in module.named_children()]
        columns = [units for place in places if (units := lists.get(place)) and not alone[place] and len(units) > 1]
        columns.sort(key=lambda units: units[0].blocks[0].start)
        for units in _zipped(columns):
            yield from finder.chains(units)


def _zipped(columns: Sequence[list[Unit]]) -> Iterator[list[Unit]]:
    """Lists that are called in turns, as one list of units: all first ones, all second ones."""
    left = list(columns)
    while left:
        first = left.pop(0)
        start, stop = first[0].blocks[0].start, first[1].blocks[0].start
        others = [c for c in left if len(c) == len(first) and start < c[0].blocks[0].start < stop]
        left = [c for c in left if c not in others]
        if others:
            for row in (rows := list(zip(first, *others, strict=True))):
                blocks = sorted((block for unit in row for block in unit.blocks), key=lambda block: block.start)
                row[0].blocks = tuple(blocks)
            yield [row[0] for row in rows]


class _Finder:
    """Looks for units in what was watched."""

    def __init__(self, seen: Watch):
        self.seen = seen
        self._times = [op.time for op in seen.ops]
        self._makers = {value: (op, i) for op in seen.ops for i, value in enumerate(op.made)}
        self.made = frozenset(value for event in [*seen.ops, *seen.blocks] for value in event.made)
        self._calls: dict[str, list[Block]] = {}
        for block in seen.blocks:
            self._calls.setdefault(block.path, []).append(block)

    def units(self, path: str, container: nn.Module) -> list[Unit] | None:
        """What is called at each child of a module, in order; None where that is not clear."""
        found = []
        for name, child in container.named_children():
            place = f"{path}.{name}".lstrip(".")
            blocks = self._called(place, child)
            if blocks:
                found.append(Unit(place, tuple(sorted(blocks, key=lambda block: block.start))))
        if path in self._calls or not path:  # the code of a module with a forward names its children one by one
            found = [unit for unit in found if unit.path in self._calls]
        return sorted(found, key=lambda unit: unit.blocks[0].start)

    def _called(self, path: str, module: nn.Module) -> list[Block]:
        """The outermost modules with tensors that are called at a place, each once; none where tensors are read, or
        modules called, in any other way."""
        if next(itertools.chain(module.parameters(), module.buffers()), None) is None:
            return []
        if path in self._calls:
            return self._calls[path] if len(self._calls[path]) == 1 else []
        parts = [(f"{path}.{name}", child) for name, child in module.named_children()]
        found = [self._called(*part) for part in parts]
        own = module._parameters or module._buffers
        read = any(
            not blocks and any(True for _ in child.parameters())
            for blocks, (_, child) in zip(found, parts, strict=True)
        )
        return [] if own or read else [block for blocks in found for block in blocks]

    def chains(self, units: list[Unit]) -> Iterator[list[Unit]]:
        """Runs of units each of which follows the one before."""
        kinds = [unit.kind for unit in units]
        if not any(kind in kinds[i + 1 : i + 5] for i, kind in enumerate(kinds)):
            return
        chain = units[:1]
        for unit, following in itertools.pairwise(units):
            if self._follows(unit, following):
                chain.append(following)
                continue
            if len(chain) > 1:
                yield chain
            chain = [following]
        if len(chain) > 1:
            yield chain

    def _follows(self, unit: Unit, following: Unit) -> bool:
        """Find a way in which the unit can be out; it is noted on the unit."""
        if max(block.stop for block in unit.blocks) > following.blocks[0].start:
            return False
        ways = [list(_ways(block)) for block in unit.blocks]
        if math.prod(map(len, ways)) > MOST_WAYS:
            return False
        turn = _Turn(self, unit, following)
        for way in itertools.product(*ways):
            needed = [zero for _, zero in way]
            if all(block.is_plain_layer for block in unit.blocks) and not any(needed):
                continue  # layers in a row
            if turn.passes(way, frozenset(range(len(way)))):
                silent = turn.passes(way, frozenset(i for i, zero in enumerate(needed) if zero))
                unit.needed = tuple(needed) if silent else (True,) * len(way)
                unit.hands_on = tuple(_hands_on(b, *each) for b, each in zip(unit.blocks, way, strict=True))
                return True
        return False

    def between(self, unit: Unit, stop: int) -> list[Op | Block]:
        """What happens from the start of a unit, its blocks as a whole."""
        start = unit.blocks[0].start
        ops = self.seen.ops[bisect(self._times, start) : bisect(self._times, stop)]
        outside = [op for op in ops if not any(block.start < op.time < block.stop for block in unit.blocks)]
        return sorted([*outside, *unit.blocks], key=lambda event: event.time if isinstance(event, Op) else event.start)

    def made_alike(self, known: Any, value: int) -> bool:
        """Whether a value that was worked out is another that was watched: the same, or made of the same in the same
        way."""
        if not isinstance(known, tuple):
            return known == value
        if value not in self._makers:
            return False
        op, place = self._makers[value]
        name, number, rest, parts = known
        return (
            (name, number) == (op.name, place)
            and len(rest) == len(op.rest)
            and all(a is b or (type(a) is type(b) and _plain(a) and a == b) for a, b in zip(rest, op.rest, strict=True))
            and len(parts) == len(op.taken)
            and all(map(self.made_alike, parts, op.taken))
        )


class _Turn:
    """A turn of the loop, and the turn that follows."""

    def __init__(self, finder: _Finder, unit: Unit, following: Unit):
        self._finder, self._born = finder, finder.seen.born
        self._start, middle = unit.blocks[0].start, following.blocks[0].start
        self._events = finder.between(unit, middle)
        self._blocks = {id(block): i for i, block in enumerate(unit.blocks)}
        after = finder.between(following, following.blocks[-1].stop + 2 * (middle - self._start))
        together = zip(self._events, after, strict=False)
        self._pairs = list(
            itertools.takewhile(lambda pair: _named(unit, pair[0]) == _named(following, pair[1]), together)
        )
        touched = {
            value
            for _, event in self._pairs
            for value in event.taken
            if value is not None and self._born[value] > self._start and value not in finder.made
        }
        for event in self._events:
            if isinstance(event, Block) or touched & set(event.taken):
                touched |= {value for value in event.made if value is not None}
        self._touched = touched
        self._turn = {value: i for i, event in enumerate(self._events) for value in event.made}

    def passes(self, way: Way, out: frozenset[int]) -> bool:
        """Whether, with these blocks out in this way, the following unit is given what this one was given."""
        env: dict[int, Any] = {}

        def worked_out(value: int) -> Any:
            return env.get(value, value if self._born[value] < self._start else None)

        for event in self._events:
            if isinstance(event, Op):
                known = [worked_out(value) for value in event.taken]
                for i, value in enumerate(event.made):
                    env[value] = _result(event, known, i)
                continue
            place = self._blocks[id(event)]
            slot, zero = way[place]
            for i, value in enumerate(event.made):
                if value is not None:
                    taken = event.taken[slot]
                    known = ZERO if zero else None if taken is None else worked_out(taken)
                    env[value] = known if place in out and i == _first(event) else None
        return self._same(env)

    def _same(self, env: dict[int, Any]) -> bool:
        """Whether all that the following unit takes of what this one made is what this one took."""
        passed, last, blocks = False, -1, 0
        for mine, other in self._pairs:
            blocks += isinstance(other, Block)
            for value, before in zip(other.taken, mine.taken, strict=False):
                if value not in self._touched:
                    continue
                if before is None or not self._finder.made_alike(env.get(value), before):
                    return False
                passed |= isinstance(other, Block)
                last = max(last, self._settled(env, value))
        return passed and blocks == len(self._blocks) and last < len(self._pairs)

    def _settled(self, env: dict[int, Any], value: int) -> int:
        """The event after which it is settled that a value is made of what was there before the unit."""
        if value not in self._touched or value not in self._turn:
            return -1
        event = self._events[self._turn[value]]
        if isinstance(env.get(value), tuple) and isinstance(event, Op):
            return max((self._settled(env, part) for part in event.taken), default=-1)
        return self._turn[value]


def _named(unit: Unit, event: Op | Block) -> Any:
    """What an event is, in terms that units have in common."""
    return event.name if isinstance(event, Op) else unit.blocks.index(event)


def _result(op: Op, known: list[Any], place: int) -> Any:
    """What a call makes of values that were worked out; None where that is unknown."""
    if op.name in ADD and len(known) == 2 and ZERO in known and not op.rest:
        return known[1] if known[0] == ZERO else known[0]
    if op.name in SAME or (known and op.name == "dropout" and op.made[0] in op.taken):
        return known[0]
    if known and ((op.name in PRODUCT and ZERO in known) or (op.name in ZERO_STAYS_ZERO and known[0] == ZERO)):
        return ZERO
    if None in known or ZERO in known:
        return None
    return op.name, place, op.rest, tuple(known)


def _first(block: Block) -> int:
    """Which of the things that a block returns is its first tensor."""
    return next((i for i, value in enumerate(block.made) if value is not None), -1)


def _ways(block: Block) -> Iterable[tuple[int, bool]]:
    """The ways in which a block can be out."""
    first = _first(block)
    if first < 0:
        return []
    shape, inputs = block.outputs[first].shape, block.inputs
    slots = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor) and x.shape == shape][:3]
    return [*((slot, False) for slot in slots), *((slot, True) for slot in slots[:1])]


def _hands_on(block: Block, slot: int, zero: bool) -> HandsOn:
    """What a block returns when it is out: its first tensor from `slot`, numbers as it is given them, else None."""
    inputs = block.inputs

    def place(i: int, leaf: Any) -> int:
        if i == _first(block):
            return slot
        if isinstance(leaf, torch.Tensor) or not _plain(leaf):
            return -1
        return next((j for j, given in enumerate(inputs) if type(given) is type(leaf) and given == leaf), -1)

    return HandsOn(tuple(place(i, leaf) for i, leaf in enumerate(block.outputs)), block.output, zero)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device, slice))

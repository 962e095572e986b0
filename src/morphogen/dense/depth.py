"""Index tables of depth growth: which block a block of the deeper network is, or copies.

A table has one entry for each block of the network after the morph, counted from the input: the block
before the morph that it comes from. The first block that comes from an old one is that block itself; the
others are its copies.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

Table = Callable[[int, int], list[int]]
"""From the numbers of blocks before and after to a table."""


def interpolated(before: int, after: int) -> list[int]:
    """New blocks between the old ones, each behind the block it copies; the topmost blocks are copied first.

    6 to 9 blocks: 0 1 2 3 3 4 4 5 5 (Network Expansion, section 3.4 and Figure 3b; AutoProg, Figure 2c, whose
    supplement's floor(i / l_s) is a misprint). Fewer blocks: those that would be kept on the way back.
    """
    if after < before:
        return originals(interpolated(after, before))
    copies, more = divmod(after, before)
    return [old for old in range(before) for _ in range(copies + (old >= before - more))]


def stacked(before: int, after: int) -> list[int]:
    """The old blocks, and the same again on top: i mod l_s (AutoProg, supplement, equation 2; StackBERT).

    Fewer blocks: the first ones.
    """
    return [new % before for new in range(after)]


def originals(table: Sequence[int]) -> list[int]:
    """Where the old blocks themselves are in the network after the morph."""
    return [table.index(old) for old in sorted(set(table))]


def inserted(least: int, length: int, size: int, table: Table) -> tuple[int, ...]:
    """Which of `size` blocks are alive in a network of `length` that began with `least` of them.

    As `table` grows `least` to `length`: for `interpolated`, new blocks between those that are always alive, from
    the last ones on (AutoProg, section 4.3). Whatever lengths come in between, a longer network has the blocks of a
    shorter one, so that one set of weights serves all.
    """
    copies = Counter(table(least, length))
    seen: Counter[int] = Counter()
    alive = []
    for position, old in enumerate(table(least, size)):
        if seen[old] < copies[old]:
            alive.append(position)
        seen[old] += 1
    return tuple(alive)


def nested(lengths: Sequence[int], table: Table) -> list[tuple[int, ...]]:
    """Which of the last length's blocks are alive in each stage of a growth in depth.

    Read from the last stage backwards: the blocks of a stage are the originals of the next one.
    """
    alive = [tuple(range(lengths[-1]))]
    for before, after in reversed(list(itertools.pairwise(lengths))):
        later = alive[0]
        alive.insert(0, tuple(later[i] for i in originals(table(before, after))))
    return alive

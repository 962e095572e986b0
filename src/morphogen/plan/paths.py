"""The stages a run goes through; where a method searches, those it would go through if it found this or that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..dense.subnet import SubNetwork
from ..morph.entry import depth_named
from ..parts import Average
from ..run.assembly import Assembly
from ..schedule.stages import Stage

Choose = Callable[[Sequence[SubNetwork]], SubNetwork]
"""What a search is taken to find among its candidates."""


@dataclass(frozen=True)
class Span:
    """A stage and its epochs."""

    stage: Stage
    epochs: int


def spans_if(assembly: Assembly, epochs: int, choose: Choose) -> list[Span]:
    """All stages of a run whose searches find what `choose` says.

    A method that does not search has only this one run. The epochs of a search whose weights are thrown away come
    on top of the run's. A stage with candidates in which nothing is chosen is a supernet that trains to the end.

    Raises:
        ConfigError: the method does not fit the run's length or the network.
    """
    found: list[SubNetwork] = []
    stages, thrown_away = list(assembly.continued(found)), list[Span]()
    while (end := stages[-1].choose_at) is not None:
        search = stages[-1]
        found.append(choose(search.candidates))
        stages = list(assembly.continued(found))
        if search not in stages:
            thrown_away.append(Span(search, end - search.start))
    distinct = [stage for i, stage in enumerate(stages) if i == 0 or not _same(stage, stages[i - 1])]
    ends = [stage.start for stage in distinct[1:]] + [epochs]
    spans = [Span(stage, end - stage.start) for stage, end in zip(distinct, ends, strict=True)]
    return sorted([*thrown_away, *spans], key=lambda span: span.stage.start)  # a search before what it found


def runs_in(stage: Stage) -> tuple[SubNetwork, ...]:
    """The sub-networks that take a stage's steps, each as often as the others."""
    return stage.candidates or (stage.subnetwork,)


def keeps_momentum(assembly: Assembly, spans: Sequence[Span], number: int) -> bool:
    """Whether a momentum network follows the weights in a stage: a search measures it, or a later one takes weights."""
    if assembly.of(Average) is None:
        return False
    if spans[number].stage.choose_at is not None:
        return True
    operator = depth_named(assembly.depth_operator)
    blocks = [span.stage.subnetwork.blocks for span in spans[number:]]
    return operator.momentum and any(
        operator.everything or set(after[name]) - set(before[name])
        for before, after in pairwise(blocks)
        for name in after
    )


def _same(one: Stage, other: Stage) -> bool:
    return (one.subnetwork, one.candidates) == (other.subnetwork, other.candidates)

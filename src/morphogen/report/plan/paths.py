"""The stages a run goes through; where a method searches, those it would go through if it found this or that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...methods import Method
from ...morph.entry import depth_named
from ...network import Network
from ...schedule.stages import Stage
from ...subnet import SubNetwork

Choose = Callable[[Sequence[SubNetwork]], SubNetwork]
"""What a search is taken to find among its candidates."""


def stages_if(method: Method, network: Network, epochs: int, choose: Choose) -> list[Stage]:
    """All stages of a run whose searches find what `choose` says.

    A method that does not search has only this one run. A stage with candidates that remains the last one whatever
    is found is no search: the supernet trains to the end.

    Raises:
        ConfigError: the method does not fit the run's length or the network.
    """
    found: list[SubNetwork] = []
    stages = list(method.continued(network, epochs, found))
    while stages[-1].candidates and len(found) < epochs:
        found.append(choose(stages[-1].candidates))
        longer = list(method.continued(network, epochs, found))
        if longer == stages:
            break
        stages = longer
    return [stage for i, stage in enumerate(stages) if i == 0 or not _same(stage, stages[i - 1])]


def lengths(stages: Sequence[Stage], epochs: int) -> list[int]:
    """Epochs of each stage."""
    ends = [stage.start for stage in stages[1:]] + [epochs]
    return [end - stage.start for stage, end in zip(stages, ends, strict=True)]


def runs_in(stage: Stage) -> tuple[SubNetwork, ...]:
    """The sub-networks that take a stage's steps, each as often as the others."""
    return stage.candidates or (stage.subnetwork,)


def keeps_momentum(method: Method, stages: Sequence[Stage], number: int) -> bool:
    """Whether a momentum network follows the weights in a stage: a later one takes weights from it."""
    if method.momentum is None:
        return False
    everything = depth_named(method.depth_operator).everything
    nexts = [(a.subnetwork, b.subnetwork) for a, b in zip(stages[number:], stages[number + 1 :], strict=False)]
    return any(everything or set(b.blocks[name]) - set(a.blocks[name]) for a, b in nexts for name in b.blocks)


def _same(one: Stage, other: Stage) -> bool:
    return (one.subnetwork, one.candidates) == (other.subnetwork, other.candidates)

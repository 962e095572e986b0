"""Stochastic depth, laid out anew over the blocks that are alive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..dense.network import Network
from ..dense.subnet import BlockStack, DropPath, SubNetwork, is_inside


def lay_out_drop_path(network: Network) -> None:
    """Give the model the rates of its current sub-network; `drop_path_scale` is the share of them in use."""
    for drop in rates_in(network, network.current):
        setattr(network.model.get_submodule(drop.path), drop.attribute, network.drop_path_scale * drop.rate)


def rates_in(network: Network, subnetwork: SubNetwork) -> Iterator[DropPath]:
    """Each stack's rates spread over the blocks of a sub-network: from its first block's rate to its last one's.

    A stack of 12 with rates 0 to 0.1 that is 6 deep has 0, 0.02 .. 0.1, as a network built 6 deep would. The
    rates belong to positions, not to blocks, so a block that is a copy of the first has its own.
    """
    yield from network.structure.drop_path
    for stack in network.stacks:
        alive = subnetwork.blocks[stack.name]
        for place, rates in _rates(stack).items():
            for rank, unit in enumerate(alive):
                rate = _between(rates, rank * (len(rates) - 1) / max(1, len(alive) - 1))
                for drop in stack.drop_path[unit]:
                    if _place(stack, unit, drop) == place:
                        yield replace(drop, rate=rate)


def _rates(stack: BlockStack) -> dict[tuple[int, str], list[float]]:
    """For each place in a unit that drops, the dense rates of all units; 0 where a unit has nothing there."""
    rates: dict[tuple[int, str], list[float]] = {}
    for unit, drops in enumerate(stack.drop_path):
        for drop in drops:
            rates.setdefault(_place(stack, unit, drop), [0.0] * stack.size)[unit] = drop.rate
    return rates


def _place(stack: BlockStack, unit: int, drop: DropPath) -> tuple[int, str]:
    """Which block of the unit, and where in the block."""
    number = next(i for i, path in enumerate(stack.units[unit]) if is_inside(drop.path, path))
    return number, drop.path[len(stack.units[unit][number]) :]


def _between(rates: list[float], position: float) -> float:
    """Linear interpolation between neighbouring entries."""
    low = min(int(position), len(rates) - 1)
    high = min(low + 1, len(rates) - 1)
    return rates[low] + (rates[high] - rates[low]) * (position - low)

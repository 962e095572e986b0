"""Stochastic depth, laid out anew over the blocks that are alive."""

from __future__ import annotations

from torch import nn

from ..network import Network


def lay_out_drop_path(network: Network) -> None:
    """Spread each stack's rates over its current blocks: from its first block's rate to its last one's.

    A stack of 12 with rates 0 to 0.1 that is 6 deep has 0, 0.02 .. 0.1, as a network built 6 deep would. The
    rates belong to positions, not to blocks, so a block that is a copy of the first has its own.

    Args:
        network: its model is at `network.current`; `drop_path_scale` is the share of the dense rates in use.
    """
    for stack in network.stacks:
        rates = [max((drop.rate for drop in unit), default=0.0) for unit in stack.drop_path]
        alive = network.current.blocks[stack.name]
        for rank, unit in enumerate(alive):
            rate = _between(rates, rank * (len(rates) - 1) / max(1, len(alive) - 1))
            for drop in stack.drop_path[unit]:
                _set(network.model, drop.path, drop.attribute, network.drop_path_scale * rate)


def _between(rates: list[float], position: float) -> float:
    """Linear interpolation between neighbouring entries."""
    low = min(int(position), len(rates) - 1)
    high = min(low + 1, len(rates) - 1)
    return rates[low] + (rates[high] - rates[low]) * (position - low)


def _set(model: nn.Module, path: str, attribute: str, rate: float) -> None:
    setattr(model.get_submodule(path), attribute, rate)

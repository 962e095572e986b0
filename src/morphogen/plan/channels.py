"""Sub-networks with a few channels more, in numbers that a device may like better."""

from __future__ import annotations

from dataclasses import replace

from ..dense.network import Network
from ..dense.subnet import SubNetwork

MULTIPLES = (8, 16, 32)
"""What channel numbers are rounded up to, to see whether the device likes it."""


def rounded_up(network: Network, subnetwork: SubNetwork, multiple: int) -> SubNetwork:
    """The sub-network with the channels of every group rounded up to a multiple, or to all that the group has."""
    channels = dict(subnetwork.channels)
    for group in network.groups:
        alive = channels[group.name]
        spare = [unit for unit in range(group.size) if unit not in set(alive)]
        missing = group.rounded_up(len(alive), multiple) - len(alive)
        channels[group.name] = tuple(sorted([*alive, *spare[:missing]]))
    return replace(subnetwork, channels=channels)

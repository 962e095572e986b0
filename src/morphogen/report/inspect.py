"""What of a model can change size, and what that costs: tables of plain rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..cost.flops import cost
from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import SubNetworkError

Row = dict[str, Any]


def describe(network: Network, shares: Sequence[float]) -> dict[str, list[Row]]:
    """Tables by title: channel groups, what is pinned, block stacks, blocks that stay, ops without a rule, costs.

    Args:
        network: any; it is not changed.
        shares: of the width, the depth and the resolution (side), each by itself, to count the costs at.
    """
    return {
        "Channel groups": [
            {
                "channel group": g.name,
                "channels": g.channels,
                "unit": g.unit,
                "units": g.size,
                "tensor axes": len(g.members),
            }
            for g in network.groups
        ],
        "Pinned": [{"pinned axis": p.axis, "size": p.size, "reason": p.reason} for p in network.pinned],
        "No rule, so that what it reads stays whole": [
            {"op": op, "first in": path} for op, path in network.structure.unread.items()
        ],
        "Block stacks": [
            {
                "block stack": s.name,
                "units": s.size,
                "blocks in a unit": len(s.units[0]),
                "can grow by identity": "no" if s.writers is None else "yes",
                "stochastic depth": _rates([drop.rate for unit in s.drop_path for drop in unit]),
            }
            for s in network.stacks
        ],
        "Blocks that stay": [{"block": b.path, "reason": b.reason} for b in network.structure.fixed_blocks],
        "Cost for one image": [
            {
                "part": part,
                "input": "" if sub.resolution is None else f"{sub.resolution[0]} x {sub.resolution[1]}",
                "parameters": price.parameters,
                "forward FLOPs": price.forward,
                "training FLOPs": price.training,
            }
            for part, sub in _parts(network, shares)
            for price in [cost(network, sub)]
        ],
    }


def _parts(network: Network, shares: Sequence[float]) -> list[tuple[str, SubNetwork]]:
    """The sub-networks whose costs are shown: what this model allows."""
    ask: dict[str, Callable[[float], SubNetwork]] = {
        "width": lambda share: network.subnetwork(width=share),
        "depth": lambda share: network.subnetwork(depth=share),
        "resolution": lambda share: network.subnetwork(resolution=float(share)),
    }
    parts = []
    for dimension, part in ask.items():
        for share in shares:
            try:
                parts.append((f"{dimension} {share:g}", part(share)))
            except SubNetworkError:
                break  # the tables above say why
    return [*parts, ("whole", network.dense)]


def _rates(rates: list[float]) -> str:
    return f"{min(rates):.3g} to {max(rates):.3g}" if rates else ""

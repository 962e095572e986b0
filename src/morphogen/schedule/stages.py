"""A growth schedule (Psi of the papers): which sub-network trains from which epoch on."""

from __future__ import annotations

from dataclasses import dataclass

from ..subnet import SubNetwork


@dataclass(frozen=True)
class Stage:
    """A span of training with one sub-network, from the beginning of epoch `start` to the next stage."""

    start: int
    subnetwork: SubNetwork

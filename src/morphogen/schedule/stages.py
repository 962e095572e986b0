"""A growth schedule (Psi of the papers): which sub-network trains from which epoch on."""

from __future__ import annotations

from dataclasses import dataclass

from ..subnet import SubNetwork


@dataclass(frozen=True)
class Stage:
    """A span of training with one sub-network, from the beginning of epoch `start` to the next stage.

    Attributes:
        start: its first epoch, counted from 0.
        subnetwork: what trains.
        candidates: in a search, parts of `subnetwork` (the elastic supernet), one of which runs in each step;
            empty otherwise.
    """

    start: int
    subnetwork: SubNetwork
    candidates: tuple[SubNetwork, ...] = ()


@dataclass(frozen=True)
class Regularisation:
    """How strong regularisation is in one epoch, as shares of the recipe's own values (0 to 1).

    Attributes:
        randaugment: of RandAugment's magnitude.
        erasing: of the probability of random erasing.
        drop_path: of the rates of stochastic depth.
    """

    randaugment: float = 1.0
    erasing: float = 1.0
    drop_path: float = 1.0

"""A growth schedule (Psi of the papers): which sub-network trains from which epoch on."""

from __future__ import annotations

from dataclasses import dataclass

from ..dense.subnet import SubNetwork


@dataclass(frozen=True)
class Stage:
    """A span of training with one sub-network, from the beginning of epoch `start` to the next stage.

    Attributes:
        start: its first epoch, counted from 0.
        subnetwork: what trains.
        candidates: parts of `subnetwork` (the elastic supernet), one of which runs in each step; empty where all of
            it does.
        choose_at: the epoch before which one of the candidates is chosen, where the stage is a search.
        usual: in a search, what a schedule known ahead would train; of candidates that cannot be told apart, one
            that has all of it goes on.
    """

    start: int
    subnetwork: SubNetwork
    candidates: tuple[SubNetwork, ...] = ()
    choose_at: int | None = None
    usual: SubNetwork | None = None


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

"""Which channels of a trained network a smaller one keeps: the most important ones, not the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..dense.fake import tensor_named
from ..dense.network import Network
from ..dense.subnet import FIXED, SubNetwork
from .stages import Stage

CHOICES = ("position", "importance")
"""How the channels of a smaller network are chosen: the first of each group, or the most important."""

Order = Mapping[str, tuple[int, ...]]
"""For each channel group its units, the most important first."""


def importance(network: Network) -> dict[str, torch.Tensor]:
    """The importance of each unit of each channel group of the network at its full width, by the group's name.

    The L2 norm of all entries that would go with the unit, tensor by tensor, each divided by its mean over the tensor's
    units, and the mean of that over the group's tensors: the group-level norm of DepGraph (Fang et al., CVPR 2023), in
    the form that its code has by default. It counts what multiplies a signal: the weights that make a channel, those
    that read it, and the scales of its normalisation; not what is added to it.

    Raises:
        ValueError: the network is not at its full width.
    """
    if network.current.channels != network.dense.channels:
        raise ValueError("importance is of a network at its full width")
    owners = _owners(network)
    total, tensors = torch.zeros(2, sum(group.size for group in network.groups), dtype=torch.float64, device="cpu")
    for name, layout in network.structure.present(network.current).items():
        if layout.role.kind not in ("weight", "scale"):
            continue
        squares = tensor_named(network.model, name).detach().double().square()
        for dim, axis in enumerate(layout.axes):
            if axis is None:
                continue
            norms, there = _norms(squares.movedim(dim, 0).reshape(len(axis), -1).sum(1).cpu(), owners[axis], len(total))
            if norms.any():
                total += norms * there.sum() / norms.sum()
                tensors += there
    scores = total / tensors.clamp_min(1)
    parts = scores.split([group.size for group in network.groups]) if network.groups else ()
    return {group.name: part for group, part in zip(network.groups, parts, strict=True)}


def _owners(network: Network) -> torch.Tensor:
    """For each unit and each product of units, and for FIXED at the end, the units of groups that it goes with."""
    products, count = network.structure.products, sum(group.size for group in network.groups)
    alone = torch.full((count, products.shape[1]), FIXED, device="cpu")
    alone[:, 0] = torch.arange(count, device="cpu")
    return torch.cat([alone, products, torch.full((1, products.shape[1]), FIXED, device="cpu")])


def _norms(squares: torch.Tensor, owners: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of each unit's entries in one tensor, and 1 for each unit that has any there.

    Args:
        squares: the sum of squares at each position of an axis, (N,).
        owners: the units that each position goes with, (N, k), FIXED where there are fewer.
        count: of units.
    """
    sums, there = torch.zeros(2, count, dtype=torch.float64, device="cpu")
    for column in owners.t():
        own = column != FIXED
        sums.index_add_(0, column[own], squares[own])
        there[column[own]] = 1
    return sums.sqrt(), there


def by_importance(network: Network) -> Order:
    """The units of each group, the most important first; of equal ones the first first."""
    return {
        name: tuple(score.sort(descending=True, stable=True).indices.tolist())
        for name, score in importance(network).items()
    }


def chosen(stages: Sequence[Stage], order: Order) -> list[Stage]:
    """A schedule in which each position stands for the unit of that rank.

    A smaller stage stays a part of a larger one, since all follow one order.
    """

    def of(subnetwork: SubNetwork) -> SubNetwork:
        channels = {
            name: tuple(sorted(order[name][position] for position in positions))
            for name, positions in subnetwork.channels.items()
        }
        return replace(subnetwork, channels=channels)

    return [
        replace(
            stage,
            subnetwork=of(stage.subnetwork),
            candidates=tuple(of(each) for each in stage.candidates),
            usual=None if stage.usual is None else of(stage.usual),
        )
        for stage in stages
    ]

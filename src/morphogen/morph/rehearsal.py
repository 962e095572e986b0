"""A whole schedule rehearsed before training starts: what would stop a run at its second stage stops it now."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import MorphError
from .blocks import Entering, entering_blocks
from .entry import DepthOperator, depth_named
from .tensors import map_tensors
from .trial import try_out


def rehearse(network: Network, subnetworks: Sequence[SubNetwork], operator: str | DepthOperator) -> None:
    """Try out every sub-network of a schedule, and every step from one to the next.

    Raises:
        MorphError: the model cannot run at a size, a depth operator does not suit its blocks, or what follows the
            resolution cannot be interpolated.
    """
    growth = depth_named(operator)
    before = network.dense
    for subnetwork in subnetworks:
        try_out(network, subnetwork)
        check_operator(False, growth.silent, list(entering_blocks(network, before, subnetwork)), operator)
        for change in map_tensors(network, before, subnetwork).values():
            if change.regrids:
                change.regrid(torch.zeros(change.new_shape, device="cpu"))
        before = subnetwork


def check_operator(lacks_momentum: bool, silent: bool, entering: list[Entering], operator: str | DepthOperator) -> None:
    """Refuse a depth operator that lacks what it needs."""
    if lacks_momentum and entering:
        raise MorphError(
            f"the depth operator '{operator}' needs a momentum network",
            expected="momentum=, an averaged copy of the model such as torch.optim.swa_utils.AveragedModel",
            found="none",
        )
    for block in entering:
        if silent and block.stack.writers is None:
            raise MorphError(
                f"the depth operator '{operator}' cannot silence the blocks of this stack",
                where=block.stack.name,
                expected="blocks that add to their input (y = x + f(x)) and end in nothing else",
                todo="Use interpolate, or keep the stack whole",
            )
        if silent and block.unit < block.staying[0]:
            raise MorphError(
                f"the depth operator '{operator}' cannot put a block before all others",
                where=block.path,
                expected="an old block below it, whose output it passes through",
                todo="Keep the first block of the stack alive",
            )

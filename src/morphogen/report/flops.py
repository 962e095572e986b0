"""Parameters and FLOPs of any sub-network, without running it: PyTorch's counter on fake tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..network import Network
from ..subnet import SubNetwork


@dataclass(frozen=True)
class Cost:
    """What a sub-network costs.

    Attributes:
        parameters: number of trained and frozen weights.
        forward: FLOPs of one forward pass, a multiplication and an addition counted as two. PyTorch's
            counter sees convolutions, matrix products and attention; normalisation and activations are free.
        training: FLOPs of one forward and backward pass.
    """

    parameters: int
    forward: int
    training: int


def cost(network: Network, subnetwork: SubNetwork, batch_size: int = 1) -> Cost:
    """Count one sub-network at a batch size; nothing is computed and the model is not touched."""
    fake = network.sketch(subnetwork)
    with FlopCounterMode(display=False) as counter:
        output = network.fake.run(fake, subnetwork.resolution, batch_size)
        forward = counter.get_total_flops()
        tensors = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
        if tensors:
            torch.autograd.backward([t.sum() for t in tensors])
    return Cost(sum(p.numel() for p in fake.parameters()), forward, counter.get_total_flops())

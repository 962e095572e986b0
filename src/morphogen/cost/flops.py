"""What any sub-network costs, without running it: PyTorch's counter on fake tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..machine.private import tree_leaves
from .normalisation import NormalisationTraffic


@dataclass(frozen=True)
class Cost:
    """What a sub-network costs.

    Attributes:
        parameters: number of trained and frozen weights.
        forward: FLOPs of one forward pass, a multiplication and an addition counted as two. PyTorch's
            counter sees convolutions, matrix products and attention; normalisation and activations are free.
        training: FLOPs of one forward and backward pass.
        normalisation: bytes that normalisation moves in one forward and backward pass, see `NormalisationTraffic`.
        layers: number of convolution and linear layers.
    """

    parameters: int
    forward: int
    training: int
    normalisation: int
    layers: int


def cost(network: Network, subnetwork: SubNetwork, batch_size: int = 1, frozen: frozenset[str] | None = None) -> Cost:
    """Count one sub-network at a batch size, what is frozen (by default: now) without its backward pass; nothing is
    computed and the model is not touched.

    Under autocast, bytes are those of its types.
    """
    frozen = network.frozen if frozen is None else frozen
    device = network.fake.device.type
    types = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    key = "cost", subnetwork, batch_size, types, frozen
    if key not in network.answers:
        network.answers[key] = _counted(network, subnetwork, batch_size, frozen)
    return network.answers[key]


def _counted(network: Network, subnetwork: SubNetwork, batch_size: int, frozen: frozenset[str]) -> Cost:
    fake = network.sketch(subnetwork)
    for name, parameter in fake.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in frozen)
    with FlopCounterMode(display=False) as counter:
        with NormalisationTraffic() as traffic:
            output = network.fake.run(fake, subnetwork.resolution, batch_size)
        forward = counter.get_total_flops()
        tensors = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
        if tensors:
            torch.autograd.backward([t.sum() for t in tensors])
    return Cost(
        parameters=sum(p.numel() for p in fake.parameters()),
        forward=forward,
        training=counter.get_total_flops(),
        normalisation=traffic.bytes,
        layers=sum(layout.role.kind == "weight" for layout in network.structure.present(subnetwork).values()),
    )

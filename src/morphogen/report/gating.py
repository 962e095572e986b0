"""What channel gating would leave of a pruned network, beside channel union (PruneTrain, section 4.2, Figure 6)."""

from __future__ import annotations

from torch import Tensor, nn

from ..dense.fake import tensor_named
from ..dense.network import Network
from ..pruning.axes import channel_axes
from ..pruning.folded import folded_weight


def gated_share(network: Network, forward: int, threshold: float, *, folded: bool = False) -> float:
    """Share of the present network's FLOPs, were every layer to compute on its own dense channels alone.

    Channel union keeps a channel that any layer needs; with gates, each layer would leave out the channels that are
    sparse for it. Layers that compute in a module's forward pass count; what is computed elsewhere (PyTorch's own
    attention) is as it was.

    Args:
        network: at any sub-network; nothing is changed.
        forward: FLOPs of its forward pass, of one image.
        threshold: a channel is sparse where no weight's absolute value is as large.
        folded: judge weights with the batch norm behind them folded in.
    """
    if not forward:
        return 1.0
    spared = 0.0
    flops = _flops(network)
    for name, axes in channel_axes(network).items():
        if name in flops:
            weight = folded_weight(network, name) if folded else tensor_named(network.model, name).detach()
            left = 1.0
            for axis in axes:
                dense = axis.maxima(weight) >= threshold
                left *= float(axis.spread(dense, True, weight.ndim).float().mean())
            spared += flops[name] * (1 - left)
    return 1 - spared / forward


def _flops(network: Network) -> dict[str, int]:
    """FLOPs of each layer for one image, by the name of its weight: twice its weights at each place of its output."""
    fake, found = network.sketch(network.current), dict[str, int]()

    def watch(path: str, layer: nn.Module) -> None:
        def note(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.numel():
                weight = layer.get_parameter("weight")
                places = output.numel() // weight.shape[0]
                found[f"{path}.weight"] = found.get(f"{path}.weight", 0) + 2 * weight.numel() * places

        layer.register_forward_hook(note)

    for path, layer in fake.named_modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            watch(path, layer)
    network.fake.run(fake, network.current.resolution, 1)
    return found

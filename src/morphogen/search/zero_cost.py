"""Candidates compared without training: how many of the last layers a stage of fine-tuning is to train.

AutoProg-Zero (Li et al., arXiv 2410.00350) looks for its unfreezing schedule by two zero-cost proxies: trainability by
the condition number of the neural tangent kernel (NTK; as in TE-NAS, Chen et al., ICLR 2021), and convergence by ZiCo
(Li et al., ICLR 2023). Gradients of the last layers are the same whether the first ones are frozen or not, so that one
measurement of the whole network serves all candidates, exactly.

Not from the paper's text but ours: the kernel is of all trained parameters, and of the sums of the outputs of the first
images of each batch (TE-NAS); the two proxies count alike, each as its distance from the mean of the candidates in
standard deviations; what they give stands in the place of AutoProg's loss, and FLOPs in that of its time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..cost.flops import cost
from ..dense.network import Network
from ..errors import ConfigError
from ..machine.parallel import unsynchronised
from ..machine.private import tree_leaves
from ..machine.ranks import gathered
from ..machine.timing import now
from .candidates import Candidate, Found, Probe, Resize, ZeroCost
from .score import choose
from .undisturbed import as_number, seed, undisturbed, without_dropout

IMAGES = 8
"""Of each batch, whose outputs the kernel is of; as many gradients of the network are held at a time."""

SCALE = 1024.0
"""Of the loss, so that no gradient is too small for float16; both proxies are the same at any scale."""


def search_without_training(
    network: Network, frozen: Mapping[float, frozenset[str]], probe: Probe, resize: Resize, epoch: int
) -> Found:
    """Choose how many layers to train; weights, buffers, gradients, moments and random numbers stay as they are.

    The least product of what the proxies give and a power of the FLOPs of a step goes on, as in AutoProg, see `choose`.
    With several ranks each measures its own part of every batch, and the mean of the proxies over the ranks counts.

    Args:
        network: as it is between two steps.
        frozen: for each share of the layers the parameters that are frozen then.
        probe: of the training loop. The model's output has an entry for each image.
        resize: for the images.
        epoch: for the record.

    Raises:
        ConfigError: fewer than two batches, or than two images in one; a loss that is not one number, or does not
            depend on the weights; an output without an entry for each image.
        TrainingError: no candidate has finite gradients.
    """
    device = next(network.model.parameters()).device
    start, shares = now(device), list(frozen)
    with undisturbed(network, device), unsynchronised(network.model), _all_trained(network), torch.enable_grad():
        convergence, kernels = _measured(network, probe, resize)
    own = [_proxies(convergence, kernels, frozen[share]) for share in shares]
    seen = [[statistics.fmean(v) for v in zip(*ranks, strict=True)] for ranks in zip(*gathered(own), strict=True)]
    scaled = [_scaled([condition for condition, _ in seen]), _scaled([-zico for _, zico in seen])]
    losses = [math.exp(a + b) for a, b in zip(*scaled, strict=True)]
    flops = [float(cost(network, network.current, frozen=frozen[share]).training) for share in shares]
    exponent, scores, best = choose(losses, [price / max(flops) for price in flops])
    candidates = tuple(
        Candidate(network.current, loss, loss, 0.0, score, 0.0, ZeroCost(share, math.exp(condition), zico, price))
        for share, loss, score, price, (condition, zico) in zip(shares, losses, scores, flops, seen, strict=True)
    )
    return Found(epoch, 0, candidates, exponent, best, now(device) - start)


class Convergence:
    """ZiCo's statistics of each layer's gradient over batches: the mean and the spread of its absolute values."""

    def __init__(self) -> None:
        self.batches = 0
        self._mean: dict[str, torch.Tensor] = {}
        self._squares: dict[str, torch.Tensor] = {}

    def add(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """The gradients of one more batch, by the parameter's name (Welford's update)."""
        self.batches += 1
        for name, gradient in gradients.items():
            value = gradient.detach().abs()
            value = value if value.dtype == torch.float64 else value.float()
            mean = self._mean.setdefault(name, torch.zeros_like(value))
            squares = self._squares.setdefault(name, torch.zeros_like(value))
            before = value - mean
            mean += before / self.batches
            squares += before * (value - mean)

    def zico(self) -> dict[str, float]:
        """For each layer log sum E|g| / std|g| over its weights; one that never changes counts nothing.

        A layer without any that does is left out.
        """
        found = {}
        for name, mean in self._mean.items():
            spread = (self._squares[name] / self.batches).sqrt()
            ratio = torch.where(spread == 0, 0.0, mean / spread).sum()
            if ratio != 0:
                found[name] = math.log(float(ratio)) if ratio.isfinite() else math.nan
        return found


def condition_number(kernel: torch.Tensor) -> float:
    """The largest eigenvalue of a kernel (N, N) by the least; 1 / eps of float32 at most, since beyond it is rounding.

    NaN where nothing that is trained reaches the output.
    """
    if not kernel.isfinite().all():
        return math.nan
    values = torch.linalg.eigvalsh(kernel)
    largest = float(values[-1])
    if largest <= 0:
        return math.nan
    return largest / max(float(values[0]), largest * torch.finfo(torch.float32).eps)


def _proxies(
    convergence: Convergence, kernels: Sequence[Mapping[str, torch.Tensor]], frozen: Collection[str]
) -> tuple[float, float]:
    """The logarithm of the condition number, its mean over batches, and ZiCo, of what is not frozen."""
    trained = [sum(kernel for name, kernel in batch.items() if name not in frozen) for batch in kernels]
    conditions = [math.log(condition_number(k)) if isinstance(k, torch.Tensor) else math.nan for k in trained]
    zico = sum(value for name, value in convergence.zico().items() if name not in frozen)
    return statistics.fmean(conditions), zico


def _measured(network: Network, probe: Probe, resize: Resize) -> tuple[Convergence, list[dict[str, torch.Tensor]]]:
    """Gradients of the loss over the batches, and the kernel of each batch, by parameter."""
    parameters = {name: p for name, p in network.model.named_parameters() if p.requires_grad}
    layers = {name for name, layout in network.structure.tensors.items() if layout.role.kind == "weight"}
    convergence, kernels = Convergence(), list[dict[str, torch.Tensor]]()
    resolution = network.current.resolution
    network.model.train()
    without_dropout(network)
    seed(0)
    for batch, (images, labels) in enumerate(probe.subset):
        sized = images if resolution is None else resize(images, resolution)
        seed(batch)
        loss = probe.loss(sized, labels)
        as_number(loss)
        gradients = _gradients(loss * SCALE, parameters)
        convergence.add({name: gradient for name, gradient in gradients.items() if name in layers})
        del loss, gradients
        seed(batch)
        kernels.append(_kernels(network.model, probe.loss, *_first(sized, labels), parameters))
        seed(batch)  # and the next batch is augmented as in every search
    if convergence.batches < 2:
        raise ConfigError(
            "ZiCo compares the gradients of several batches",
            where="Probe",
            expected="a subset of 2 batches or more",
            found=f"{convergence.batches}",
            todo="Set subset= (in images) to several batches",
        )
    return convergence, kernels


def _kernels(
    model: nn.Module,
    loss: Callable[[torch.Tensor, Any], torch.Tensor],
    images: torch.Tensor,
    labels: Any,
    parameters: Mapping[str, nn.Parameter],
) -> dict[str, torch.Tensor]:
    """The NTK of the sums of each image's outputs: for each parameter its share of it, (N, N) in float64 on the CPU."""
    outputs = list[torch.Tensor]()

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[:] = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]

    handle = model.register_forward_hook(keep)
    try:
        loss(images, labels)
    finally:
        handle.remove()
    each = [t for t in outputs if t.ndim and len(t) == len(images)]
    count = min(IMAGES, len(images))
    if not each or count < 2:
        raise ConfigError(
            "the neural tangent kernel is of the outputs of several images",
            where=type(model).__name__,
            expected="a loss that calls the model itself, whose output has an entry for each of 2 images or more",
            found=f"{len(images)} images, outputs {[tuple(t.shape) for t in outputs]}",
            todo="Use ProgressiveUnfreezing, whose schedule is given",
        )
    rows = [_gradients(_sum([t[i] for t in each]), parameters) for i in range(count)]
    found = {}
    for name in parameters:
        jacobian = torch.stack([row[name].flatten() for row in rows])
        jacobian = jacobian if jacobian.dtype == torch.float64 else jacobian.float()
        found[name] = (jacobian @ jacobian.T).cpu().double()
    return found


def _sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([t.sum() if t.dtype == torch.float64 else t.sum(dtype=torch.float32) for t in tensors]).sum()


def _gradients(value: torch.Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Of a number, by the parameter's name; the graph stays for others."""
    if not value.requires_grad:
        raise ConfigError(
            "the probe's loss does not depend on what is trained",
            where="Probe",
            expected="a loss through the model, with gradients",
        )
    gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
    found = zip(parameters.items(), gradients, strict=True)
    return {name: torch.zeros_like(p) if gradient is None else gradient for (name, p), gradient in found}


def _first(images: torch.Tensor, labels: Any) -> tuple[torch.Tensor, Any]:
    """The first images of a batch and their labels; the whole batch where the labels do not come one for each image."""
    several = isinstance(labels, list) or (isinstance(labels, torch.Tensor) and labels.ndim > 0)
    return (images[:IMAGES], labels[:IMAGES]) if several and len(labels) == len(images) else (images, labels)


def _scaled(values: Sequence[float]) -> list[float]:
    """Distances from the mean of those that are finite, in their standard deviations; 0 where all are equal."""
    finite = [value for value in values if math.isfinite(value)]
    spread = statistics.pstdev(finite) if finite else 0.0
    mean = statistics.fmean(finite) if finite else 0.0
    if spread <= 1e-9 * abs(mean):
        return [0.0 if math.isfinite(value) else math.nan for value in values]
    return [(value - mean) / spread for value in values]


@contextmanager
def _all_trained(network: Network) -> Iterator[None]:
    """What the method has frozen has gradients in here."""
    frozen = [p for name, p in network.model.named_parameters() if name in network.frozen]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)

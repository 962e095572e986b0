"""Small networks, batches and loops that several checks use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

import morphogen
from morphogen.morph.tensors import map_tensors
from morphogen.train.cifar_resnet import CIFAR_RESNETS

from .harness import Bench, Skipped

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def cnn(bench: Bench, width: int = 16, **settings: Any) -> nn.Module:
    """A small ResNet without operations whose gradient is left to chance, channels-last."""
    model = CIFAR_RESNETS["resnet8"](width=width, **settings).to(bench.device)
    return model.to(memory_format=torch.channels_last).train()


def vit(bench: Bench, depth: int = 4, side: int = 32, **settings: Any) -> nn.Module:
    """A small ViT of timm's: patches of 4."""
    shape = {"img_size": side, "patch_size": 4, "embed_dim": 48, "depth": depth, "num_heads": 3, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **shape, **settings).to(bench.device).train()


def batches(bench: Bench, count: int = 2, images: int = 8, side: int = 32, classes: int = 10) -> Batches:
    """Random images, channels-last, and labels."""
    device = bench.device
    return [
        (
            torch.randn(images, 3, side, side, device=device).contiguous(memory_format=torch.channels_last),
            torch.randint(classes, (images,), device=device),
        )
        for _ in range(count)
    ]


def sgd(model: nn.Module, **settings: Any) -> Optimizer:
    """SGD with Nesterov momentum."""
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, **settings)


def train_epoch(
    run: morphogen.Run,
    optimizer: Optimizer,
    data: Iterable[tuple[torch.Tensor, torch.Tensor]],
    epoch: int,
    *,
    model: nn.Module | None = None,
    autocast: torch.dtype | None = torch.bfloat16,
    before: Callable[[int], None] = lambda step: None,
) -> list[torch.Tensor]:
    """An epoch of a plain loop that a method is attached to; returns the losses, on the device.

    Args:
        run: the method at work.
        optimizer: of the model.
        data: images and labels.
        epoch: counted from 0.
        model: what to call, where that is a wrapper.
        autocast: the type, or None.
        before: called with the number of each step before it.
    """
    run.begin_epoch(epoch)
    called, losses = model or run.network.model, []
    for step, (images, labels) in enumerate(data):
        before(step)
        optimizer.zero_grad()
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            loss = F.cross_entropy(called(images), labels)
        run.penalised(loss).backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def train(run: morphogen.Run, optimizer: Optimizer, data: Batches, epochs: int, **settings: Any) -> float:
    """A whole run; returns the last loss, which must be a number."""
    epoch, losses = 0, []
    while epoch < epochs:
        losses = train_epoch(run, optimizer, data, epoch, **settings)
        epoch = run.next_epoch(epoch)
    run.end()
    loss = float(losses[-1])
    assert loss == loss, "the loss is not a number"
    return loss


def plain_steps(model: nn.Module, optimizer: Optimizer, data: Batches, ema: ModelEmaV3 | None = None) -> None:
    """Training steps without a method, so that every state is there."""
    for images, labels in data:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if ema is not None:
            ema.update(model)


def tensors_of(model: nn.Module, optimizer: Optimizer | None = None) -> dict[str, torch.Tensor]:
    """Copies of all weights, buffers, gradients and moments by name; `weight/exp_avg` is one of the last."""
    found = {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"{name}/grad"] = parameter.grad.clone()
        for key, value in (optimizer.state.get(parameter, {}) if optimizer else {}).items():
            found[f"{name}/{key}"] = torch.as_tensor(value).clone()
    return found


def check_carried(
    net: morphogen.Network,
    before: dict[str, torch.Tensor],
    old: morphogen.SubNetwork,
    after: dict[str, torch.Tensor],
) -> int:
    """Whatever is alive in both sub-networks is the same bit for bit, of one dtype on one device; returns how much."""
    new, layouts, compared = net.current, net.structure.tensors, 0
    masks = net.structure.alive_mask(old), net.structure.alive_mask(new)
    changed, present = map_tensors(net, old, new), net.structure.present(new)
    for key, value in before.items():
        name, was = key.partition("/")[0], value
        if name not in present or (name in changed and changed[name].regrids):
            continue
        assert key in after, f"{key} is lost"
        now = after[key]
        assert (was.device, was.dtype) == (now.device, now.dtype), f"{key}: {was.device, was.dtype, now.device}"
        assert torch.isfinite(now).all(), f"{key}: not finite"
        if name in changed and was.ndim:
            for dim, axis in enumerate(layouts[name].axes):
                if axis is not None:
                    both = masks[0][axis] & masks[1][axis]
                    was, now = (
                        t.index_select(dim, both[mask[axis]].nonzero().flatten().to(t.device))
                        for t, mask in zip((was, now), masks, strict=True)
                    )
        assert torch.equal(was, now), f"{key}: changed"
        compared += was.numel()
    return compared


def check_held(model: nn.Module, optimizer: Optimizer) -> None:
    """Every parameter is in one group, and every moment has its size and is where it is."""
    held = sorted(id(p) for group in optimizer.param_groups for p in group["params"])
    assert held == sorted(id(p) for p in model.parameters()), "the optimizer holds other parameters than the model"
    for parameter in model.parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor) and value.ndim:
                assert value.shape == parameter.shape, f"{key}: {value.shape} of {parameter.shape}"
                assert value.device == parameter.device, f"{key} is on {value.device}"


def check_channels_last(model: nn.Module) -> None:
    """The weights of convolutions still have the memory format that they had."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last), f"{name}: {parameter.stride()}"


def peak_of(
    step: Callable[[], None], parameters: Iterable[torch.Tensor], optimizer: Optimizer, images: torch.Tensor
) -> int:
    """Bytes of a training step at its peak, without what is there but not its own (workspaces, other networks)."""
    optimizer.zero_grad()
    torch.cuda.synchronize()
    state = [t for each in optimizer.state.values() for t in each.values() if isinstance(t, torch.Tensor)]
    others = torch.cuda.memory_allocated() - sum(t.nbytes for t in [*parameters, *state, images])
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - others


@contextmanager
def deterministic() -> Iterator[None]:
    """Only algorithms that give the same bits every time."""
    torch.use_deterministic_algorithms(True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def need(condition: bool, reason: str) -> None:
    """Skip a check where something is missing."""
    if not condition:
        raise Skipped(reason)

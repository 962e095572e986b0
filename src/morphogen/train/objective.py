"""How a recipe trains: its optimizer, precision and memory format, and losses that are numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from ..errors import ConfigError, DivergedError
from ..methods import Method
from ..parts import Batch
from ..run.assembly import Assembly
from .distributed import share
from .recipe import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe; AdamW leaves biases, norms and tokens undecayed.

    Raises:
        ConfigError: the model has nothing to train.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("no parameter of the model is trained", where=recipe.model, expected="requires_grad")
    fused = recipe.fused or None  # otherwise what PyTorch takes by itself
    if recipe.optimizer == "adamw":
        tokens = getattr(model, "no_weight_decay", set)()  # timm's way to name them
        groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=tokens)
        return torch.optim.AdamW(groups, recipe.lr, fused=fused)
    settings = {"momentum": 0.9, "nesterov": recipe.nesterov, "weight_decay": recipe.weight_decay}
    return torch.optim.SGD(model.parameters(), recipe.lr, fused=fused, **settings)


@contextmanager
def precision_of(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Autocast as the recipe says, or none; around a forward pass."""
    with torch.autocast(device.type, recipe.autocast, enabled=recipe.autocast is not None):
        yield


def laid_out(images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Images in the memory format of the recipe."""
    return images.contiguous(memory_format=torch.channels_last) if recipe.channels_last else images


def check_pairs(method: Method, recipe: Recipe) -> None:
    """Refuse batches that mixup and cutmix cannot pair, where one is on; raises ConfigError."""
    if not (recipe.mixup or recipe.cutmix):
        return
    counts = {"batch_size of each rank": share(recipe.batch_size)}
    batch = Assembly(method).of(Batch)
    if batch is not None:
        counts["DynamicBatch, step"] = batch.policy.step
    for where, count in counts.items():
        if count % 2:
            raise ConfigError(
                "mixup and cutmix pair the images of a batch",
                where=where,
                expected="an even number",
                found=f"{count}",
            )


def check_finite(losses: list[torch.Tensor], epoch: int, first_step: int) -> None:
    """Refuse losses that are not numbers; the first of these is that of step `first_step` of the epoch."""
    finite = torch.stack(losses).isfinite()
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise DivergedError(
            "the loss is not finite",
            where=f"epoch {epoch + 1}, step {first_step + bad + 1}",
            found=f"{float(losses[bad])}",
            todo="Lower the learning rate, begin with a larger network, or let rescue put off what it came with",
        )

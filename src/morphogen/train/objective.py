"""What a recipe minimises, and with which optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn import functional as F

from ..dense.network import Network
from ..errors import ConfigError, DivergedError, first_line
from ..methods import Method
from ..parts import Batch
from ..run.assembly import Assembly
from .config import Recipe
from .distributed import share
from .images import MapCrops
from .token_labels.objective import predict, token_grid, token_label_loss, token_targets, with_true_labels


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


def check_scores(network: Network, classes: int, mixes: bool) -> None:
    """Refuse a model that gives no scores of the classes when it trains, before it does.

    Args:
        network: its model and example as they are trained.
        classes: of the data.
        mixes: whether labels are shares of classes, for which there must be just as many scores.

    Raises:
        ConfigError: its output is something else, or it cannot run in training.
    """
    fake = network.sketch(network.dense).train()
    where = type(network.model).__name__
    expected = f"a tensor of shape (images, {classes}) that the parameters have a gradient of"
    try:
        output = network.fake.run(fake, network.dense.resolution)
    except Exception as error:  # whatever the model's own code raises
        raise ConfigError(
            f"the model cannot run in training ({first_line(error)})", where=where, expected=expected
        ) from error
    found = type(output).__name__
    if isinstance(output, torch.Tensor):
        found = f"shape {tuple(output.shape)}, {output.dtype}" + (
            "" if output.requires_grad else ", without a gradient"
        )
        enough = output.ndim == 2 and (output.shape[1] == classes or (output.shape[1] > classes and not mixes))
        if enough and output.is_floating_point() and output.requires_grad:
            return
    raise ConfigError(
        "the model's output in training gives no scores of the classes", where=where, expected=expected, found=found
    )


def check_pairs(method: Method, recipe: Recipe) -> None:
    """Refuse batches that mixup and cutmix cannot pair; raises ConfigError."""
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


def loss_of(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor | MapCrops,
    smoothing: float,
    swapped: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> torch.Tensor:
    """The training loss of a batch: cross entropy, or that of token labelling where the labels are maps.

    `swapped` surrounds a call of another method of the model than its `forward`, see `Run.swapped`.
    """
    if isinstance(labels, torch.Tensor):
        # PyTorch's cross entropy takes mixed labels too, and smooths both kinds alike.
        return F.cross_entropy(model(images), labels, label_smoothing=smoothing)
    with swapped():
        predictions = predict(model, images)
    count, classes = predictions.tokens.shape[1:]
    targets = token_targets(labels, classes, token_grid(count, (images.shape[2], images.shape[3])))
    return token_label_loss(predictions, with_true_labels(targets, labels.labels, smoothing))


def check_finite(losses: list[torch.Tensor], epoch: int, first_step: int) -> None:
    """Refuse losses that are not numbers; the first of these is that of step `first_step` of the epoch."""
    finite = torch.stack(losses).isfinite()
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise DivergedError(
            "the loss is not finite",
            where=f"epoch {epoch}, step {first_step + bad}",
            found=f"{float(losses[bad])}",
            todo="Lower the learning rate, begin with a larger network, or let rescue put off what it came with",
        )

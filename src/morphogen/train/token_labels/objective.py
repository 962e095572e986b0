"""Token labelling (Jiang et al., "All Tokens Matter", NeurIPS 2021): a target and a loss for every token."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ...errors import ConfigError
from ...machine.ranks import ranks
from ...parts.resizing import Size
from ..images import MapCrops


class TokenTargets(NamedTuple):
    """Probabilities to learn.

    Attributes:
        image: (N, classes), of the whole crop.
        tokens: (N, rows columns, classes), of each place of it, row by row.
    """

    image: Tensor
    tokens: Tensor


class Predictions(NamedTuple):
    """Logits to be judged.

    Attributes:
        image: (N, classes), from the class token.
        tokens: (N, rows columns, classes), row by row.
        box: rows r1 to r2 and columns c1 to c2 of tokens, as (r1, c1, r2, c2), that MixToken exchanged with the
            image at the same place from the batch's other end; all 0 where it is not in use.
    """

    image: Tensor
    tokens: Tensor
    box: tuple[int, int, int, int]


def token_targets(crops: MapCrops, num_classes: int, grid: tuple[int, int]) -> TokenTargets:
    """Follow each image's crop and flip in its label map.

    Args:
        crops: as collated by PyTorch's loader, on any device.
        num_classes: of the model.
        grid: rows and columns of the model's tokens at the input's present resolution, see `token_grid`.

    Returns:
        Scores averaged over the crop, or the part of it under a token (RoIAlign), then softmax, as the authors do.
    """
    rows, columns = crops.scores.shape[2:]
    maps = dense(crops.scores, crops.classes, num_classes)
    boxes = crops.boxes * torch.tensor([columns, rows, columns, rows], device=maps.device)
    regions = torch.cat([torch.arange(len(boxes), device=maps.device)[:, None].float(), boxes], dim=1)
    image = roi_align(maps, regions, (1, 1), aligned=True).flatten(1)
    tokens = roi_align(maps, regions, grid, aligned=True)
    tokens = torch.where(crops.flipped[:, None, None, None], tokens.flip(3), tokens)
    return TokenTargets(image.softmax(1), tokens.flatten(2).transpose(1, 2).softmax(2))


def token_grid(tokens: int, size: Size) -> tuple[int, int]:
    """Rows and columns of so many tokens of an image: of all that fit, those nearest to the image's aspect."""
    fitting = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(fitting, key=lambda grid: abs(math.log(grid[0] * size[1] / (grid[1] * size[0]))))


def dense(scores: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """A score for every class: (N, top_k, rows, columns) to (N, num_classes, rows, columns), float32."""
    n, _, rows, columns = scores.shape
    return scores.new_zeros(n, num_classes, rows, columns, dtype=torch.float32).scatter_(
        1, classes.long(), scores.float()
    )


def with_true_labels(targets: TokenTargets, labels: Tensor, smoothing: float = 0.1) -> TokenTargets:
    """Blend the true class into the whole crop's target: the authors' variant with ground truth.

    Half of each where the teacher's first class is the true one. Where it is not, the crop may well show something
    else, and nine tenths stay the teacher's.

    Args:
        targets: from `token_targets`.
        labels: (N,), int64.
        smoothing: share of the true label spread over all classes.
    """
    teacher = targets.image
    truth = F.one_hot(labels, teacher.shape[1]) * (1 - smoothing) + smoothing / teacher.shape[1]
    share = torch.where(teacher.argmax(1) == labels, 0.5, 0.9)[:, None]
    return targets._replace(image=share * teacher + (1 - share) * truth)


def token_label_loss(predictions: Predictions, targets: TokenTargets, dense_weight: float = 0.5) -> Tensor:
    """Cross-entropy of the image's prediction, plus `dense_weight` times the mean of that of its tokens.

    With MixToken the one prediction for an image answers for both images in it, by area. The predictions for tokens
    answer for their own image's map alone: the model has moved those in the box back.

    Args:
        predictions: of `predict`.
        targets: of the same batch, on the model's token grid.
        dense_weight: the paper's beta.

    Raises:
        ConfigError: the targets are on another grid.
    """
    image, tokens, (r1, c1, r2, c2) = predictions
    if tokens.shape != targets.tokens.shape:
        raise ConfigError(
            "targets do not fit the model's tokens",
            expected=f"(images, tokens, classes) {tuple(tokens.shape)}",
            found=f"{tuple(targets.tokens.shape)}",
            todo="Pass token_targets the token_grid of these tokens",
        )
    other = (r2 - r1) * (c2 - c1) / tokens.shape[1]
    mixed = (1 - other) * targets.image + other * targets.image.flip(0)
    own = targets.tokens.flatten(0, 1)
    return F.cross_entropy(image.float(), mixed) + dense_weight * F.cross_entropy(tokens.float().flatten(0, 1), own)


def predict(model: nn.Module, images: Tensor) -> Predictions:
    """What a timm VOLO in training mode says of (N, 3, H, W): its `forward_train`, and the head that leaves out.

    Raises:
        ConfigError: the model makes no predictions for its tokens.
    """
    able = model.training and hasattr(model, "forward_train")
    output = model.forward_train(images) if able else None  # pyright: ignore  (timm's interface)
    if not isinstance(output, tuple):
        raise _without_tokens(model)
    image, tokens, box = output
    if image.shape[1] == model.num_features:  # timm 1.0 returns the class token as it is; later ones may not
        image = model.head(model.head_drop(image))  # pyright: ignore  (timm's interface)
    return Predictions(image, tokens, box)


def check_predicts(model: nn.Module) -> None:
    """Refuse a model that cannot be trained on label maps with MixToken, before it is; raises ConfigError."""
    if ranks() > 1:
        raise ConfigError(
            "token labelling calls parts of the model, and so goes past DistributedDataParallel",
            where="token_labels",
            expected="one process",
        )
    able = hasattr(model, "forward_train") and getattr(model, "aux_head", None) is not None
    if not able or not getattr(model, "mix_token", False):
        raise _without_tokens(model)


def _without_tokens(model: nn.Module) -> ConfigError:
    return ConfigError(
        "the model makes no predictions for its tokens, or mixes none",
        where=type(model).__name__,
        expected="a VOLO in training mode, such as timm:volo_d1_224(use_mix_token=True)",
    )

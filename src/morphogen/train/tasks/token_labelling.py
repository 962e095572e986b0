"""Each token of an image has shares of classes, as a teacher sees them; tested as classification."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...dense.network import Network
from ..images import MapCrops
from ..token_labels.objective import (
    check_predicts,
    predict,
    token_grid,
    token_label_loss,
    token_targets,
    with_true_labels,
)
from .classification import Classification
from .task import Swapped


@dataclass(frozen=True)
class TokenLabelling(Classification):
    """The loss of token labelling against label maps, see `token_labels`.

    Attributes:
        ground_truth: whether the true class is blended into the target of the whole crop.
    """

    ground_truth: bool = False

    def check(self, network: Network, images: int) -> None:
        """The model must be a VOLO that mixes tokens."""
        check_predicts(network.model)

    def loss(self, model: nn.Module, images: Tensor, targets: Any, swapped: Swapped = nullcontext) -> Tensor:
        """Of the image and of its tokens."""
        with swapped():
            predictions = predict(model, images)
        count, classes = predictions.tokens.shape[1:]
        wanted = token_targets(targets, classes, token_grid(count, (images.shape[2], images.shape[3])))
        if self.ground_truth:
            wanted = with_true_labels(wanted, targets.labels, self.smoothing)
        return token_label_loss(predictions, wanted)

    def pieces(self, targets: Any, count: int) -> list[Any]:
        """Maps and crops of the same images."""
        return [MapCrops(*some) for some in zip(*(tensor.chunk(count) for tensor in targets), strict=True)]

"""Each image has a class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...dense.network import Network
from ...errors import ConfigError
from ...machine.ranks import gathered, ranks
from ...report.confusion import write_confusion
from .task import Predict, Swapped, Task, described, name_of, output_in_training

TOP = 5
"""Best scores of which one must be right, in the second figure that classification is known by."""


@dataclass(frozen=True)
class Classification(Task):
    """Cross entropy against classes (N,), or against shares of classes (N, classes) of mixup and cutmix.

    Attributes:
        mixes: whether there are such shares, for which there must be just as many scores.
        weights: of the classes in the loss, float32; None for all alike.
    """

    metric: ClassVar[str] = "accuracy"
    mixes: bool = False
    weights: Tensor | None = None

    def check(self, network: Network, images: int) -> None:
        """The model must give scores (images, classes)."""
        expected = f"a tensor of shape (images, {self.classes}) that the parameters have a gradient of"
        output = output_in_training(network, images, expected)
        if isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point() and output.requires_grad:
            count = output.shape[1]
            if count == self.classes or (count > self.classes and not self.mixes):
                return
        raise ConfigError(
            "the model's output in training gives no scores of the classes",
            where=name_of(network),
            expected=expected,
            found=described(output),
        )

    def loss(self, model: nn.Module, images: Tensor, targets: Any, swapped: Swapped = nullcontext) -> Tensor:
        """Cross entropy."""
        # PyTorch's takes mixed labels too, and smooths both kinds alike.
        scores = model(images)
        weights = self.weights
        if weights is not None:
            weights = F.pad(weights.to(scores), (0, scores.shape[1] - len(weights)))  # a model may have more scores
        return F.cross_entropy(scores, targets, weights, label_smoothing=self.smoothing)

    def evaluate(
        self, predict: Predict, batches: Iterable[tuple[Tensor, Any]], device: torch.device
    ) -> dict[str, float]:
        """Images whose class has the best score, and with more than five classes one of the five best."""
        right, near, total = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for images, labels in batches:
            scores = predict(images)
            right += (scores.argmax(1) == labels).sum()
            if self.classes > TOP:
                near += (scores.topk(TOP, 1).indices == labels[:, None]).sum()
            total += len(labels)
        total = sum(gathered(total))
        figures = {self.metric: 100 * sum(gathered(float(right))) / total}
        return figures | ({f"top-{TOP}": 100 * sum(gathered(float(near))) / total} if self.classes > TOP else {})

    def draw(
        self,
        predict: Predict,
        batches: Iterable[tuple[Tensor, Any]],
        statistics: Mapping[str, Tensor],
        folder: Path,
        names: Sequence[str] = (),
    ) -> list[Path]:
        """`classes.csv`, `confusion.csv` and `confusion.png`: precision, recall and F1 of each class, and what is taken
        for what. Of several ranks none does, since each has a part of the test."""
        if ranks() > 1:
            return []
        found = [(labels.cpu(), predict(images)[:, : self.classes].argmax(1).cpu()) for images, labels in batches]
        truth, predicted = (torch.cat(each).numpy() for each in zip(*found, strict=True))
        return write_confusion(truth, predicted, list(names) or [str(number) for number in range(self.classes)], folder)

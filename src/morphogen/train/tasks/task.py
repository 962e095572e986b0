"""What the trainer asks of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...dense.network import Network
from ...errors import ConfigError, first_line

Predict = Callable[[Tensor], Any]
"""The tested network on images as the data gives them."""

Swapped = Callable[[], AbstractContextManager[None]]
"""Surrounds a call of another method of the model than its `forward`, see `Run.swapped`."""

ONE_VALUE = "Expected more than 1 value per channel"
"""How PyTorch's batch norm refuses one value in training."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Beside(NamedTuple):
    """What a step costs beside the module that is traced.

    Attributes:
        parameters: there.
        forward: FLOPs of one image in the forward pass of training.
        training: FLOPs of one image in forward and backward pass.
    """

    parameters: int = 0
    forward: int = 0
    training: int = 0


@dataclass(frozen=True)
class Task(ABC):
    """What a network learns to do.

    Attributes:
        classes: that it tells apart.
        smoothing: share of each label that goes to all classes alike.
    """

    metric: ClassVar[str]
    """What the test measures, in percent; the record of a run has it under `accuracy`, whatever it is."""

    part: ClassVar[str] = ""
    """Path of the module that is traced and changes its size; by default the whole model."""

    boxes: ClassVar[bool] = False
    """Whether the model is a detector: its layers score classes for each anchor or box, and ONNX cannot hold it."""

    predicts: ClassVar[bool] = True
    """Whether `predict` says what is in an image."""

    classes: int
    smoothing: float = 0.0

    @staticmethod  # noqa: B027  (most tasks take models as they are)
    def prepare(model: nn.Module) -> None:
        """Fit a model to the task, in place, when it is built.

        Raises:
            ConfigError: it is no model for this task.
        """

    @abstractmethod
    def check(self, network: Network, images: int) -> None:
        """Refuse a model whose output cannot be learnt from, before it is trained.

        Args:
            network: its model as it is trained, or what is traced of it.
            images: in a step, on each rank.

        Raises:
            ConfigError: its output is something else, or it cannot run in training.
        """

    @abstractmethod
    def loss(self, model: nn.Module, images: Tensor, targets: Any, swapped: Swapped = nullcontext) -> Tensor:
        """Mean training loss of a batch.

        Args:
            model: in training mode.
            images: (N, 3, H, W), normalised.
            targets: of the kind that the data gives; where they are maps of the image, they follow its size here.
            swapped: see `Swapped`.
        """

    @abstractmethod
    def evaluate(
        self, predict: Predict, batches: Iterable[tuple[Tensor, Any]], device: torch.device
    ) -> dict[str, float]:
        """Test figures of all ranks together, percent: that of `metric` first.

        Args:
            predict: the tested network, in evaluation mode.
            batches: images and targets of this rank's part of the test set.
            device: they are on.
        """

    def beside(self, model: nn.Module, size: tuple[int, int] | None) -> Beside:
        """What training on images of a size (height, width) costs beside what is traced; by default all is traced."""
        return Beside()

    def pieces(self, targets: Any, count: int) -> list[Any]:
        """The targets of a batch cut as `Tensor.chunk` cuts its images."""
        return list(targets.chunk(count))

    def draw(
        self,
        predict: Predict,
        batches: Iterable[tuple[Tensor, Any]],
        statistics: Mapping[str, Tensor],
        folder: Path,
        names: Sequence[str] = (),
    ) -> list[Path]:
        """Write what is to be seen of the predictions.

        Args:
            predict: see `evaluate`.
            batches: see `evaluate`.
            statistics: mean and std of the images.
            folder: to write into.
            names: of the classes, where the data has any.
        """
        return []


def output_in_training(network: Network, images: int, expected: str) -> Any:
    """What the model returns in training, on fake tensors.

    Raises:
        ConfigError: it cannot run; a batch norm has one value of each channel.
    """
    fake, entered = network.sketch(network.dense).train(), [""]
    for name, module in fake.named_modules():
        if isinstance(module, BATCH_NORMS):
            module.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
    try:
        return network.fake.run(fake, network.dense.resolution, images)
    except Exception as error:  # whatever the model's own code raises
        if ONE_VALUE in str(error):
            raise ConfigError(
                "batch norm has one value of each channel, and so nothing to normalise by",
                where=entered[-1],
                expected="at least 2 images in a step on each rank",
                found=f"{images}",
                todo="Set batch_size higher",
            ) from error
        raise ConfigError(
            f"the model cannot run in training ({first_line(error)})", where=name_of(network), expected=expected
        ) from error


def name_of(network: Network) -> str:
    """The model's class, for messages."""
    return type(network.model).__name__


def described(output: Any) -> str:
    """An output, for messages."""
    if not isinstance(output, Tensor):
        return type(output).__name__
    gradient = "" if output.requires_grad else ", without a gradient"
    return f"shape {tuple(output.shape)}, {output.dtype}{gradient}"

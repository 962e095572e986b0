"""Testing networks on a run's test images: their figures, at one size or another, and pictures of what they predict."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import ConfigError
from ..graph.trace import trace
from ..morph.commit import morph
from ..parts.resizing import Size
from .data import Data
from .objective import laid_out, precision_of
from .recipe import Recipe
from .tasks.classification import Classification

T = TypeVar("T")


class Tester:
    """Tests networks as a recipe says, on its task's images."""

    def __init__(self, recipe: Recipe, data: Data, device: torch.device):
        """
        Raises:
            ConfigError: a size of the tests for a task that takes images whole.
        """
        if recipe.test_size and data.task.metric != Classification.metric:
            raise ConfigError(
                "test images are taken whole", where="test_size", expected="none", found=f"{recipe.test_size}"
            )
        self._recipe, self._data, self._device = recipe, data, device

    def figures(self, model: nn.Module, size: Size | None) -> dict[str, float]:
        """What the task's test tells of a network at a size (height, width), in percent, by name."""
        return self._on_test_images(model, size, self._data.task.evaluate, self._device)

    def figures_at(self, model: nn.Module, side: int) -> dict[str, Any]:
        """The same of a copy of a finished network on images of another size, without training there (AutoProg,
        Table 2).

        Raises:
            SubNetworkError: the model cannot run at this size.
        """
        model = copy.deepcopy(model).eval()
        network = trace(model, self.example(2))
        morph(network, network.subnetwork(resolution=(side, side)))
        accuracy = self.figures(model, (side, side))[self._data.task.metric]
        return {"size": side, "shown": self._data.shown(side), "accuracy": accuracy}

    def draw(self, model: nn.Module, size: Size | None, folder: Path) -> list[Path]:
        """Write pictures of predictions, where the task has any."""
        data = self._data
        statistics = {"mean": data.mean, "std": data.std}
        return self._on_test_images(model, size, data.task.draw, statistics, folder, data.classes)

    def example(self, batch_size: int) -> torch.Tensor:
        """Images as the network gets them."""
        return laid_out(self._data.example(batch_size).to(self._device), self._recipe)

    def _on_test_images(self, model: nn.Module, size: Size | None, test: Callable[..., T], *arguments: Any) -> T:
        """What a function of the task makes of a network and the test images at a size."""
        model.eval()
        with torch.inference_mode(), precision_of(self._recipe, self._device):
            batches = self._data.test_batches(size)
            return test(lambda images: model(laid_out(images, self._recipe)), batches, *arguments)

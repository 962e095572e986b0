"""One training step: the loss, its gradients and the update, as fast as the recipe asks for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from ..errors import TrainingError, first_line
from ..machine.private import COMPILER_ERRORS
from ..machine.ranks import ranks
from ..parts import Search
from ..run.run import Run
from .compiled import compiled, settings
from .distributed import wrapped
from .objective import laid_out, precision_of
from .recipe import Recipe
from .tasks import Task
from .tasks.task import ONE_VALUE


class Stepper:
    """Takes the training steps of one run.

    Attributes:
        pieces: that a batch is cut into, whose gradients add up, because it did not fit into memory whole.
        compiles: whether the next full step is the first one of its size, which is compiled then.
    """

    def __init__(self, recipe: Recipe, task: Task, model: nn.Module, optimizer: Optimizer, averages: list[ModelEmaV3]):
        """`follow` says what to train."""
        self._task = task
        self._recipe, self._model, self._optimizer, self._averages = recipe, model, optimizer, averages
        self._device = recipe.torch_device()
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=recipe.precision == "float16")
        self._trained = wrapped(model)
        self._images, self.pieces, self.compiles = 0, 1, False

    def follow(self, attached: Run, images: int) -> None:
        """The model may have another size, or the batch: compile it anew.

        Args:
            attached: the method at work on the model.
            images: in a full step on this rank.
        """
        self._attached, self._images, self.pieces = attached, images, 1
        # Candidates run as they are: compiling each takes longer than the steps it has.
        search = attached.part(Search)
        self.compiles = bool(self._recipe.compile) and (search is None or search.searching is None)
        self._compiled = compiled(self._trained, graphs=bool(self._recipe.cuda_graphs)) if self.compiles else None

    def take(self, images: torch.Tensor, targets: Any) -> torch.Tensor:
        """Train on a batch; returns its mean loss.

        Raises:
            TrainingError: it does not fit into memory, not even in pieces of one image; or the model cannot be
                compiled.
        """
        self._attached.begin_step()
        with settings() if self._compiled is not None else nullcontext():
            while (loss := self._gradients(images, targets)) is None:
                self._cut(len(images))
        if self._recipe.clip_grad:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.clip_grad)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._attached.end_step()
        for average in self._averages:
            average.update(self._model)
        self.compiles = False
        return loss

    def loss(self, images: torch.Tensor, targets: Any, model: nn.Module | None = None) -> torch.Tensor:
        """Mean loss of a batch, through the model as it is; also what a search compares."""
        with precision_of(self._recipe, self._device):
            trained = self._model if model is None else model
            return self._task.loss(trained, laid_out(images, self._recipe), targets, self._attached.swapped)

    def state_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"pieces": self.pieces, "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, after `follow`."""
        self.pieces = int(state["pieces"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(dict(state["scaler"]))

    def _gradients(self, images: torch.Tensor, targets: Any) -> torch.Tensor | None:
        """Gradients of the mean loss of a batch, which is returned; None where memory ran out."""
        self._optimizer.zero_grad()
        total = torch.zeros((), device=self._device)
        try:
            for some, theirs in zip(images.chunk(self.pieces), self._task.pieces(targets, self.pieces), strict=True):
                share = len(some) / len(images)
                loss = self.loss(some, theirs, self._for(len(some)))
                self._scaler.scale(self._attached.penalised(loss) * share).backward()
                total += loss.detach() * share
        except COMPILER_ERRORS as error:
            raise TrainingError(
                f"the model cannot be compiled ({first_line(error)})", todo="Leave out compile and fast"
            ) from error
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            raise TrainingError(
                "batch norm has one value of each channel, and so nothing to normalise by",
                expected="at least 2 images at a time",
                found=f"{-(-len(images) // self.pieces)} (a step of {len(images)} images in {self.pieces} pieces)",
                todo="Lower image_size, so that larger pieces fit into memory, or set batch_size higher",
            ) from error
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            return None
        return total

    def _for(self, images: int) -> nn.Module:
        """The model as it takes so many images: compiled where that is the number of a full step."""
        full = -(-self._images // self.pieces)
        return self._compiled if self._compiled is not None and images == full else self._trained

    def _cut(self, images: int) -> None:
        """Take smaller pieces from here on; called when the memory of those that failed is free again."""
        if self.pieces >= images or ranks() > 1:  # other ranks wait for gradients of the whole batch
            raise TrainingError(
                "a training step does not fit into memory",
                expected="memory for one image" if ranks() == 1 else f"memory for {images} images on each rank",
                todo="Lower batch_size",
            )
        self.pieces = min(2 * self.pieces, images)
        self._optimizer.zero_grad()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"a step of {images} images does not fit into memory: they go in {self.pieces} pieces from here on, whose "
            "gradients add up (batch norm sees a piece at a time)",
            stacklevel=2,
        )


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

"""A method in the Trainer of Hugging Face's transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from ..dense.fake import Example
from ..errors import CheckpointError, ConfigError
from ..machine.files import replaced
from ..methods import Method
from ..parts import Prune
from ..run.attach import attach
from ..run.run import Run
from ..search.candidates import Probe
from .hooks import LaterWeights, check_fits, moved, saved_state

FILE = "morphogen.pt"
"""In each of the Trainer's checkpoints: the run, with its weights and the optimizer's moments."""


class MorphogenCallback(TrainerCallback):
    """Changes the size of a model of transformers while the Trainer trains it.

        callback = MorphogenCallback(NetworkExpansion(width=0.5), example={"pixel_values": images})
        Trainer(model, TrainingArguments(...), train_dataset=data, callbacks=[callback])

    Images are resized on their way into the model, steps end with the optimizer's (once for accumulated gradients), and
    the loss that the model computes from its `labels` gets the penalty, where the method prunes. The Trainer's
    checkpoints hold the run, and `trainer.train(resume_from_checkpoint=True)` goes on from them at the size they were
    saved at.

    Attributes:
        run: the run at work, from the beginning of training on.
    """

    def __init__(
        self,
        method: Method,
        *,
        example: Example,
        steps_per_epoch: int | None = None,
        ema: nn.Module | None = None,
        probe: Probe | None = None,
        exclude: Iterable[str] = (),
    ):
        """
        Args:
            method: such as `NetworkExpansion(width=0.5, stages=5)`.
            example: the model's arguments, at the size used in training; see `trace`.
            steps_per_epoch: optimizer steps in an epoch; by default as the Trainer counts them.
            ema: an averaged copy of the model to change along.
            probe: see `attach`.
            exclude: paths of modules to leave whole.

        Raises:
            ConfigError: a method that changes the batch, or throws epochs away.
        """
        check_fits(method)
        self.run: Run | None = None
        self._method, self._example, self._ema = method, example, ema
        self._steps_per_epoch, self._probe, self._exclude = steps_per_epoch, probe, tuple(exclude)
        self._later: list[LaterWeights] = []
        self._lengths: list[int] = []
        self._epoch, self._begins, self._within = 0, False, False
        self._undo: list[Callable[[], None]] = []

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **_: Any
    ) -> None:
        """The Trainer may load a checkpoint's weights next, before there is an optimizer and so before the run."""
        self._later = [LaterWeights(model)]

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        train_dataloader: Any,
        **_: Any,
    ) -> None:
        """Attach the method, and go on from the run that is in a checkpoint.

        Raises:
            ConfigError: a form of the model that cannot change, or the best checkpoint is to be loaded at the end.
            CheckpointError: no run is found for the checkpoint.
        """
        _check(args)
        passed = next((later.passed for later in self._later if later.passed), "")
        self._stop()
        if passed and not state.global_step:
            raise CheckpointError(
                "weights were loaded that do not fit the model",
                where=passed,
                expected="those of the dense model, or train(resume_from_checkpoint=...)",
            )
        while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):  # Accelerate's wrapper
            optimizer = inner
        self._lengths = [len(group["params"]) for group in optimizer.param_groups]
        steps = _steps(args, train_dataloader)
        self.run = attach(
            model,
            optimizer,
            self._method,
            example=moved(self._example, args.device),
            epochs=-(-state.max_steps // steps),
            steps_per_epoch=self._steps_per_epoch or steps,
            ema=self._ema,
            probe=self._probe,
            exclude=self._exclude,
        )
        if state.global_step:
            self.run.load_state_dict(_saved(args, state))
        self._epoch = math.ceil(state.epoch or 0)
        self._within = self._epoch != (state.epoch or 0)
        self._undo = [_penalise(self.run)]

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The first step begins the epoch: until then, the Trainer brings back random numbers from a checkpoint."""
        self._begins, self._within = not self._within, False

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Morph where the schedule says."""
        if self._begins and self.run is not None:
            self.run.begin_epoch(self._epoch)
            self._epoch, self._begins = self._epoch + 1, False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put the run beside the Trainer's own files.

        The Trainer loads `optimizer.pt` into the optimizer of the dense model, so that file says nothing any more of
        the moments, which are in the run.
        """
        folder = _folder(args, state)
        if self.run is None or not state.is_world_process_zero or not folder.exists():
            return
        with replaced(folder / FILE) as file:
            torch.save(self.run.state_dict(), file)
        if (path := folder / "optimizer.pt").exists():
            with replaced(path) as file:
                torch.save(self._without_moments(saved_state(path)), file)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take out what is sparse, and what a method keeps in the model."""
        assert self.run is not None
        self.run.end()
        self._stop()

    def _without_moments(self, saved: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state without any, of the dense model's parameters."""
        groups, first = [], 0
        for group, length in zip(saved["param_groups"], self._lengths, strict=True):
            groups.append({**group, "params": list(range(first, first + length))})
            first += length
        return {"state": {}, "param_groups": groups}

    def _stop(self) -> None:
        if self.run is not None:
            self.run.detach()
        for undo in [later.stop for later in self._later] + self._undo:
            undo()
        self._later, self._undo = [], []


def _check(args: TrainingArguments) -> None:
    if args.n_gpu > 1 or args.deepspeed or args.fsdp:
        raise ConfigError(
            "the Trainer keeps the model in a form that cannot be changed",
            where="MorphogenCallback",
            expected="one GPU for each process, and DistributedDataParallel around the model",
            found=f"{args.n_gpu} GPUs" if args.n_gpu > 1 else "DeepSpeed" if args.deepspeed else "FSDP",
            todo="Start it with torchrun, without deepspeed and fsdp",
        )
    if args.load_best_model_at_end:
        raise ConfigError(
            "the best checkpoint may be of another size than the model is at the end",
            where="load_best_model_at_end",
            expected="False",
            todo="Load the checkpoint's morphogen.pt into a run that is attached afresh",
        )


def _steps(args: TrainingArguments, loader: Any) -> int:
    """Optimizer steps in an epoch."""
    if not has_length(loader):
        raise ConfigError(
            "epochs are not known where the data have no length",
            where="train_dataset",
            expected="a dataset with __len__",
        )
    return max(1, -(-len(loader) // args.gradient_accumulation_steps))


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    """The checkpoint of the present step."""
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def _saved(args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
    path = _folder(args, state) / FILE
    if not path.exists():
        raise CheckpointError(
            "the run of this checkpoint is not there",
            where=str(path),
            expected="a checkpoint in output_dir that was saved with MorphogenCallback",
            todo="Move it there, or start from its weights without resume_from_checkpoint",
        )
    return saved_state(path)


def _penalise(run: Run) -> Callable[[], None]:
    """Add the penalty to the loss that the model returns; return the way back."""
    if run.part(Prune) is None:
        return lambda: None

    def after_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not model.training:
            return output
        if not isinstance(output, dict) or output.get("loss") is None:
            raise ConfigError(
                "the penalty cannot reach a loss that is computed outside the model",
                where=type(model).__name__,
                expected="a model that returns its loss, given labels",
                todo="Leave out label_smoothing_factor and compute_loss_func",
            )
        # Losses of accumulated gradients are shares of the step's mean where the Trainer says how many images it has.
        total, share = kwargs.get("num_items_in_batch"), 1.0
        if total is not None:
            share = (kwargs["labels"] != -100).sum() / total
        output["loss"] = run.penalised(output["loss"] / share) * share
        return output

    return run.network.model.register_forward_hook(after_forward, with_kwargs=True).remove

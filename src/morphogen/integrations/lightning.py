"""A method in Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import nn

from ..dense.fake import Example
from ..errors import CheckpointError, ConfigError
from ..methods import Method
from ..parts import Prune
from ..run.assembly import Assembly
from ..run.attach import attach
from ..run.run import Run
from ..search.candidates import Probe
from .hooks import LaterWeights, check_fits, moved


class MorphogenCallback(Callback):
    """Changes the size of a LightningModule's network while Lightning trains it.

        Trainer(max_epochs=90, callbacks=[MorphogenCallback(NetworkExpansion(width=0.5), "net", example=images)])

    Images are resized on their way into the network, steps end with the optimizer's (once for accumulated gradients),
    and what `training_step` returns gets the penalty, where the method prunes. Lightning's checkpoints hold the run,
    and `trainer.fit(ckpt_path=...)` goes on from them at the size they were saved at.

    Attributes:
        run: the run at work, from the beginning of `fit` on.
    """

    def __init__(
        self,
        method: Method,
        network: str,
        *,
        example: Example,
        ema: str | None = None,
        steps_per_epoch: int | None = None,
        probe: Probe | None = None,
        exclude: Iterable[str] = (),
    ):
        """
        Args:
            method: such as `NetworkExpansion(width=0.5, stages=5)`.
            network: path of the network that changes, in the LightningModule: `net` for its `self.net`.
            example: an input of the network, of the size used in training; see `trace`.
            ema: path of an averaged copy of the network in the LightningModule.
            steps_per_epoch: optimizer steps in an epoch; by default as Lightning estimates them.
            probe: see `attach`.
            exclude: paths inside the network to leave whole.

        Raises:
            ConfigError: a method that changes the batch, or throws epochs away.
        """
        check_fits(method)
        self.run: Run | None = None
        self._method, self._network, self._ema, self._example = method, network, ema, example
        self._steps_per_epoch, self._probe, self._exclude = steps_per_epoch, probe, tuple(exclude)
        self._state: Mapping[str, Any] | None = None
        self._epoch: int | None = None
        self._later: list[LaterWeights] = []
        self._undo: list[Callable[[], None]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning loads the weights of a checkpoint next, before there are optimizers and so before the run."""
        if stage == "fit":
            self._stop()
            self.run = self._state = self._epoch = None
            self._later = [LaterWeights(part) for part in self._parts(pl_module)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for `on_fit_start`."""
        self._state = state_dict

    def state_dict(self) -> dict[str, Any]:
        """That of the run, the epoch it is in, and the steps it reckons with."""
        run, place = self.run, {"epoch": self._epoch}
        return {} if run is None else {"run": run.state_dict(), "steps_per_epoch": run.steps_per_epoch, **place}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the method; Lightning loads the optimizer's state next.

        Raises:
            ConfigError: not one optimizer, no number of epochs, or a strategy that shards the network or cannot hand
                a pruned one back.
            CheckpointError: a checkpoint that was saved without this callback.
        """
        _check(trainer, self._method)
        for later in self._later:
            later.stop()
        if trainer.ckpt_path is not None and not self._state:
            raise CheckpointError(
                "the checkpoint holds no run of Morphogen",
                where=str(trainer.ckpt_path),
                expected="one that was saved with MorphogenCallback",
                todo="Load its weights into the LightningModule before fit, and leave ckpt_path out",
            )
        model, *averages = self._parts(pl_module)
        (optimizer,), epochs = trainer.optimizers, trainer.max_epochs
        assert epochs is not None
        # Asked too early, Lightning loses the place in the data that it would go on from.
        saved = None if self._state is None else self._state.get("steps_per_epoch")
        steps = saved or self._steps_per_epoch or _steps(trainer, epochs)
        self.run = attach(
            model,
            optimizer,
            self._method,
            example=moved(self._example, pl_module.device),
            epochs=epochs,
            steps_per_epoch=steps,
            ema=averages,
            probe=self._probe,
            exclude=self._exclude,
        )
        if self._state:
            self.run.load_state_dict(self._state["run"])
            self._epoch = self._state["epoch"]
            self._state = None
        self._undo = [_penalise(pl_module, self.run)]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Morph where the schedule says."""
        assert self.run is not None
        if self._epoch != trainer.current_epoch:
            self._epoch = trainer.current_epoch
            self.run.begin_epoch(self._epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The same; the epoch after a checkpoint of an epoch's last step begins without the other hook."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take out what is sparse, and what a method keeps in the model."""
        assert self.run is not None
        self.run.end()
        self._stop()

    def _stop(self) -> None:
        if self.run is not None:
            self.run.detach()
        for undo in [later.stop for later in self._later] + self._undo:
            undo()
        self._later, self._undo = [], []

    def _parts(self, pl_module: LightningModule) -> list[nn.Module]:
        """The network, and its averaged copy."""
        paths = [self._network] if self._ema is None else [self._network, self._ema]
        try:
            return [pl_module.get_submodule(path) for path in paths]
        except AttributeError as error:
            raise ConfigError(
                f"the LightningModule has no such part ({error})",
                where=type(pl_module).__name__,
                expected="MorphogenCallback(method, 'net') for a network that is self.net",
            ) from error


def _check(trainer: Trainer, method: Method) -> None:
    module = trainer.lightning_module
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        raise ConfigError(
            "where a step begins and ends is not known",
            where=type(module).__name__,
            expected="automatic optimization with one optimizer",
            found=f"{len(trainer.optimizers)}" if module.automatic_optimization else "manual optimization",
            todo="Call morphogen.attach yourself, in a loop of your own",
        )
    if trainer.max_epochs in (None, -1):
        raise ConfigError("the run's length is not known", expected="Trainer(max_epochs=...)")
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise ConfigError(
            "this strategy keeps the network in a form that cannot be changed",
            where=type(trainer.strategy).__name__,
            expected="one process, or strategy='ddp'",
        )
    if Assembly(method).shrinks and isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ConfigError(
            "the process that spawns the others gets weights back which do not fit its own, dense network",
            where=type(method).__name__,
            expected="strategy='ddp', from a script of its own",
        )


def _steps(trainer: Trainer, epochs: int) -> int | None:
    """Optimizer steps in an epoch; None where Lightning does not know them."""
    steps = int(trainer.estimated_stepping_batches)
    return steps // epochs if steps >= epochs else None


def _penalise(module: LightningModule, run: Run) -> Callable[[], None]:
    """Add the penalty to what `training_step` returns, before Lightning divides and scales it; return the way back."""
    if run.part(Prune) is None:
        return lambda: None
    inner = module.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        if isinstance(output, torch.Tensor):
            return run.penalised(output)
        if isinstance(output, Mapping) and output.get("loss") is not None:
            return {**output, "loss": run.penalised(output["loss"])}
        return output

    module.__dict__["training_step"] = training_step
    return lambda: module.__dict__.pop("training_step", None)

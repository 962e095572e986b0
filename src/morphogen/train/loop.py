"""The reference trainer: a plain loop that a method is attached to, and a clock on every part of it."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from ..attach import attach
from ..errors import ConfigError, TrainingError
from ..methods import Method
from ..program import first_line
from ..report.flops import Cost, cost
from ..report.inference import inference_speeds
from ..report.ledger import Epoch, Ledger, MorphEvent, PrunedRun, StageCost
from ..report.outcome import predicted_speedup, saved_schedule
from ..report.sparsity import densities, mapped_layers, output_maxima
from ..resize import check_resizing
from ..search import Probe
from ..subnet import SubNetwork
from .config import Recipe
from .data import Data, TrainBatch
from .images import MapCrops
from .models import build_model
from .token_labels import check_predicts, predict, token_grid, token_label_loss, token_targets, with_true_labels

CHECK_EVERY = 50
"""Steps between looks at the loss: often enough to stop early, seldom enough not to wait for a GPU."""

LEAST_SUBSET = 512
"""Images on which a search compares losses where one in 25, as of the paper's ImageNet, is fewer."""


class Run:
    """One network trained by one method with one seed.

    `epochs()` yields after every epoch, so several runs can take turns; each keeps its own random state.

    Attributes:
        ledger: all figures so far.
        attached: the network and the method at work on it.
    """

    def __init__(self, recipe: Recipe, data: Data, method: Method, label: str, seed: int, steps: int | None = None):
        """`steps` shortens the run, and its learning-rate schedule, to so many steps.

        Raises:
            MorphogenError: the model, the data and the method do not fit each other.
        """
        check_resizing(method.resizing)
        self.recipe, self.data, self.seed = recipe, data, seed
        self.device = recipe.torch_device()
        self.steps = recipe.epochs * data.steps if steps is None else steps
        self.ledger = Ledger(label, recipe.model, data.name, seed)
        self._random = self._random_state()
        with self._own_random():
            torch.manual_seed(seed)
            self.model = self._dense_model().train()
            if recipe.token_labels:
                check_predicts(self.model)
            self.optimizer = build_optimizer(self.model, recipe)
            self.scheduler = _scheduler(self.optimizer, self.steps, recipe)
            self.ema = ModelEmaV3(self.model, recipe.ema) if recipe.ema else None
            example = data.example(recipe.batch_size).to(self.device)
            epochs = -(-self.steps // data.steps)
            with self.ledger.clock("trace", self.device):
                self.attached = attach(
                    self.model,
                    self.optimizer,
                    method,
                    example=example,
                    epochs=epochs,
                    steps_per_epoch=data.steps,
                    ema=self.ema,
                    probe=self._probe(method, 0),
                    exclude=recipe.exclude,
                )
            self._prices: dict[SubNetwork, Cost] = {}
            self._schedules: dict[int, dict[str, Any]] = {}
            self._open_stage(0)
            if self.attached.pruner is not None:
                dense, threshold = self.attached.network.dense, self.attached.pruner.policy.threshold
                self.ledger.pruned = PrunedRun(replace(self._stage_cost(0, dense), steps=self.steps), threshold)
                self._mapped = mapped_layers(self.attached.network, recipe.sparsity_map)

    @property
    def total_epochs(self) -> int:
        """Epochs of this run, the last perhaps cut short."""
        return -(-self.steps // self.data.steps)

    @property
    def result(self) -> nn.Module:
        """What is tested and saved: the moving average of the weights where the recipe keeps one, else the model."""
        return self.model if self.ema is None else self.ema.module

    def epochs(self) -> Iterator[Epoch]:
        """Train; yield each epoch's figures when it is over.

        Raises:
            TrainingError: a loss that is not finite; the ledger holds everything up to that epoch.
        """
        try:
            number = 0
            while number < self.total_epochs:
                with self._own_random():
                    epoch = self._epoch(number)
                yield epoch
                number = self.attached.next_epoch(number)
            self._end()
            saved = saved_schedule(self.attached)
            self.ledger.schedule = saved.to_dict() if saved else None
            self.ledger.predicted_speedup = predicted_speedup(self.attached)
        except (Exception, KeyboardInterrupt) as error:
            self.attached.close()
            self.ledger.stopped = first_line(error)
            raise

    def _epoch(self, number: int) -> Epoch:
        ledger, attached = self.ledger, self.attached
        searched = len(attached.searches)
        attached.probe = self._probe(attached.method, max(0, number - 1))
        with ledger.clock("morph", self.device):
            receipt = attached.begin_epoch(number)
        for found in attached.searches[searched:]:
            ledger.seconds["search"] += found.seconds
            ledger.seconds["morph"] -= found.seconds
            ledger.searches.append(found.record())
        self._follow_schedule(number)
        if len(attached.history) > len(ledger.history):
            self._open_stage(number)
        if receipt is not None:
            before, after = ledger.epochs[-1].accuracy, self._evaluate()
            ledger.morphs.append(MorphEvent(number, before, after, receipt.seconds, ledger.training_seconds))
        loss = self._train_epoch(number)
        epoch = Epoch(number, loss, self._evaluate(), ledger.training_seconds)
        ledger.epochs.append(epoch)
        ledger.note_memory(self.device)
        if ledger.pruned is not None:
            with ledger.clock("accounting", self.device):
                for layer, maxima in output_maxima(attached.network, self._mapped).items():
                    ledger.pruned.sparsity.setdefault(layer, []).append(maxima)
        return epoch

    def _end(self) -> None:
        """What a method takes out when training is over."""
        ledger, last = self.ledger, self.ledger.epochs[-1]
        with self._own_random(), ledger.clock("morph", self.device):
            receipt = self.attached.end()
        if receipt is not None:
            self._open_stage(self.total_epochs)
            before, last.accuracy = last.accuracy, self._evaluate()
            last.seconds = ledger.training_seconds
            ledger.morphs.append(
                MorphEvent(self.total_epochs, before, last.accuracy, receipt.seconds, ledger.training_seconds)
            )
        if ledger.pruned is not None:
            with self._own_random(), ledger.clock("accounting", self.device), self._precision():
                ledger.pruned.density = densities(self.attached.network, ledger.pruned.threshold)
                ledger.pruned.inference = inference_speeds(self._dense_model(), self.result, self._example, self.device)

    def _train_epoch(self, number: int) -> float:
        """One pass over the data; returns the mean loss."""
        self.model.train()
        done = number * self.data.steps
        losses: list[torch.Tensor] = []
        waited = self.ledger.seconds["data"]
        with self.ledger.clock("step", self.device):
            for images, labels in itertools.islice(self._timed(self._batches(number)), self.steps - done):
                losses.append(self._step(images, labels))
                if len(losses) % CHECK_EVERY == 0:
                    _check_finite(losses[-CHECK_EVERY:], done + len(losses) - CHECK_EVERY)
            _check_finite(losses, done)
        # The loop waits for its batches inside the step clock; that part is the data's.
        self.ledger.seconds["step"] -= self.ledger.seconds["data"] - waited
        with self.ledger.clock("accounting", self.device):
            stage = self.ledger.stages[-1]
            flops = sum(self._price(self.attached.runs(step)).training for step in range(len(losses)))
            stage.training_flops = (stage.training_flops * stage.steps + flops) // (stage.steps + len(losses))
            stage.steps += len(losses)
        return float(torch.stack(losses).mean())

    def _batches(self, number: int) -> Iterator[TrainBatch]:
        """The training images of an epoch as its sub-network and its method want them."""
        attached = self.attached
        return self.data.train_batches(
            self.seed,
            number,
            [attached.runs(step).resolution or self.data.size for step in range(self.data.steps)],
            attached.method.resizing,
            attached.regularisation(number),
        )

    def _step(self, images: torch.Tensor, labels: torch.Tensor | MapCrops) -> torch.Tensor:
        self.attached.begin_step()
        loss = self._loss(images, labels)
        self.optimizer.zero_grad()
        self.attached.penalised(loss).backward()
        if self.recipe.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.attached.end_step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.scheduler.step()
        return loss.detach()

    def _loss(self, images: torch.Tensor, labels: torch.Tensor | MapCrops) -> torch.Tensor:
        """Mean loss of a batch, through the model as it is; also what a search compares."""
        with self._precision():
            return loss_of(
                self.model, self._laid_out(images), labels, self.recipe.label_smoothing, self.attached.swapped
            )

    def _probe(self, method: Method, epoch: int) -> Probe | None:
        """Loss and data for a method that searches: as in an epoch of training, always on the same images."""
        if not method.searches:
            return None
        count = method.subset or min(max(LEAST_SUBSET, self.data.images // 25), self.data.images)
        strength = method.regularisation(epoch, self.total_epochs)
        return Probe(self._loss, self.data.subset(count, self.seed, strength))

    def _follow_schedule(self, number: int) -> None:
        """The learning rate of an epoch that begins again is that of its first time."""
        if number in self._schedules:
            self.scheduler.load_state_dict(self._schedules[number])
        else:
            self._schedules[number] = copy.deepcopy(self.scheduler.state_dict())

    def _timed(self, batches: Iterator[TrainBatch]) -> Iterator[TrainBatch]:
        """The batches, with the time until each is there on the data's account."""
        cpu = torch.device("cpu")  # the host's wait; a GPU goes on with its queue meanwhile
        while True:
            with self.ledger.clock("data", cpu):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _laid_out(self, images: torch.Tensor) -> torch.Tensor:
        """Images in the memory format of the run."""
        return images.contiguous(memory_format=torch.channels_last) if self.recipe.channels_last else images

    @contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            yield

    def _evaluate(self) -> float:
        """Test accuracy in percent."""
        model = self.result.eval()
        right, total = torch.zeros((), device=self.device), 0
        with self.ledger.clock("evaluation", self.device), torch.inference_mode(), self._precision():
            for images, labels in self.data.test_batches(self.attached.network.current.resolution):
                right += (model(self._laid_out(images)).argmax(1) == labels).sum()
                total += len(labels)
        return 100 * float(right) / total

    def _open_stage(self, epoch: int) -> None:
        """Enter the sub-network that trains from here on."""
        network = self.attached.network
        with self.ledger.clock("accounting", self.device):
            searching = self.attached.searching is not None
            self.ledger.stages.append(self._stage_cost(epoch, network.current, searching))
            self.ledger.history = [
                {"epoch": at, "subnetwork": subnetwork.to_dict()} for at, subnetwork in self.attached.history
            ]

    def _stage_cost(self, epoch: int, subnetwork: SubNetwork, searching: bool = False) -> StageCost:
        """What a stage of this sub-network costs, before its first step."""
        price = self._price(subnetwork)
        return StageCost(
            epoch,
            subnetwork.resolution,
            price.parameters,
            price.training,
            searching,
            inference_flops=price.forward // self.recipe.batch_size,
            normalisation=price.normalisation,
            layers=price.layers,
        )

    def _price(self, subnetwork: SubNetwork) -> Cost:
        if subnetwork not in self._prices:
            with self._precision():
                self._prices[subnetwork] = cost(self.attached.network, subnetwork, self.recipe.batch_size)
        return self._prices[subnetwork]

    def _dense_model(self) -> nn.Module:
        """The recipe's model, made anew on the device."""
        model = build_model(self.recipe.model, self.data.num_classes, self.recipe.drop_path).to(self.device)
        if self.recipe.channels_last:
            model.to(memory_format=torch.channels_last)  # pyright: ignore  (PyTorch's stubs lack it)
        return model

    def _example(self, batch_size: int) -> torch.Tensor:
        return self._laid_out(self.data.example(batch_size).to(self.device))

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        """This run's random numbers, whatever other runs draw between its epochs."""
        others = self._random_state()
        self._set_random(self._random)
        try:
            yield
        finally:
            self._random = self._random_state()
            self._set_random(others)

    def _random_state(self) -> list[torch.Tensor]:
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.random.get_rng_state(), *cuda]

    def _set_random(self, state: list[torch.Tensor]) -> None:
        torch.random.set_rng_state(state[0])
        for cuda in state[1:]:
            torch.cuda.set_rng_state(cuda, self.device)

    def save(self, path: Path) -> None:
        """Write the weights, the sub-network they belong to, and the momentum network where there is one.

        A file already there stays until the new one is whole.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        content = {"state_dict": self.result.state_dict(), "subnetwork": self.attached.network.current.to_json()}
        if self.attached.momentum is not None:
            content["momentum"] = self.attached.momentum.state_dict()
        with open(aside, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)


def writable(folder: Path) -> None:
    """Make a folder for results, before anything is trained; raises ConfigError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".part").touch()
        (folder / ".part").unlink()
    except OSError as error:
        raise ConfigError(f"cannot write results there ({first_line(error)})", where=str(folder)) from error


def loss_of(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor | MapCrops,
    smoothing: float,
    swapped: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> torch.Tensor:
    """The training loss of a batch: cross entropy, or that of token labelling where the labels are maps.

    `swapped` surrounds a call of another method of the model than its `forward`, see `Attached.swapped`.
    """
    if isinstance(labels, torch.Tensor):
        # PyTorch's cross entropy takes mixed labels too, and smooths both kinds alike.
        return F.cross_entropy(model(images), labels, label_smoothing=smoothing)
    with swapped():
        predictions = predict(model, images)
    count, classes = predictions.tokens.shape[1:]
    targets = token_targets(labels, classes, token_grid(count, (images.shape[2], images.shape[3])))
    return token_label_loss(predictions, with_true_labels(targets, labels.labels, smoothing))


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe; AdamW leaves biases, norms and tokens undecayed."""
    if recipe.optimizer == "adamw":
        tokens = getattr(model, "no_weight_decay", set)()  # timm's way to name them
        groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=tokens)
        return torch.optim.AdamW(groups, recipe.lr)
    return torch.optim.SGD(model.parameters(), recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)


def _scheduler(optimizer: torch.optim.Optimizer, steps: int, recipe: Recipe) -> LRScheduler:
    """Linear warm-up and a cosine to 0 over all steps; a shortened run warms up for the same share of its steps."""
    warmup = steps * recipe.warmup_epochs // recipe.epochs
    cosine = CosineAnnealingLR(optimizer, steps - warmup)
    if not warmup:
        return cosine
    return SequentialLR(optimizer, [LinearLR(optimizer, 1e-3, total_iters=warmup), cosine], [warmup])


def _check_finite(losses: list[torch.Tensor], first_step: int) -> None:
    finite = torch.stack(losses).isfinite()
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise TrainingError(
            "the loss is not finite",
            where=f"step {first_step + bad}",
            found=f"{float(losses[bad])}",
            todo="Lower the learning rate, or begin with a larger network",
        )

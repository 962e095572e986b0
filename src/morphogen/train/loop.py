"""The reference trainer: a plain loop that a method is attached to, and a clock on every part of it."""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from ..cost.inference import inference_speeds
from ..dense.subnet import SubNetwork
from ..errors import CheckpointError, ConfigError, DivergedError, first_line
from ..export.finite import check_finite as check_finite_network
from ..export.weights import metadata_of
from ..graph.trace import trace
from ..machine.files import replaced
from ..machine.ranks import gathered, mean, rank, ranks, spread
from ..methods import Method
from ..morph.commit import morph
from ..parts import Batch, Choose, Prune, Resize
from ..parts.resizing import Size
from ..report.correlations import FeatureMaps
from ..report.gating import gated_share
from ..report.ledger import Epoch, Ledger, MorphEvent, PrunedRun
from ..report.outcome import predicted_speedup, saved_schedule
from ..report.sparsity import densities, mapped_layers, output_maxima
from ..run.attach import attach
from ..schedule.learning_rate import shape_named, share_of_peak
from ..search.candidates import Found, Probe
from ..search.searching import Searching
from .checkpoint import Checkpoints, compare_runs
from .config import Recipe
from .contents import compare_contents
from .costs import Costs
from .data import Data, TrainBatch
from .distributed import share
from .models import build_model
from .objective import build_optimizer, check_finite, check_pairs, laid_out, precision_of
from .own_random import OwnRandom
from .pretrained import begin_with
from .room import warn_of_lack
from .stepper import Stepper
from .tasks.classification import Classification

T = TypeVar("T")

CHECK_EVERY = 50
"""Steps between looks at the loss: often enough to stop early, seldom enough not to wait for a GPU."""

TOLD = {"smaller": "half of what it added enters now", "later": "which is an epoch later"}
"""What is tried where the loss is not finite after it."""


class Run:
    """One network trained by one method with one seed.

    `epochs()` yields after every epoch, so several runs can take turns; each keeps its own random state.

    Attributes:
        ledger: all figures so far.
        attached: the network and the method at work on it.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        method: Method,
        label: str,
        seed: int,
        steps: int | None = None,
        checkpoints: Checkpoints | None = None,
    ):
        """
        Args:
            recipe: how to train.
            data: what on.
            method: which changes the network meanwhile.
            label: the method's name in tables.
            seed: of the weights, the data order and the augmentation.
            steps: shortens the run, and its learning-rate schedule, to so many steps of the recipe's batch.
            checkpoints: where to save the run while it goes on; by default nowhere.

        Raises:
            MorphogenError: the model, the data and the method do not fit each other.
        """
        self.recipe, self.data, self.seed = recipe, data, seed
        self._shape = shape_named(recipe.lr_schedule)
        self.device, images = recipe.torch_device(), share(recipe.batch_size)
        check_pairs(method, recipe)
        if recipe.test_size and data.task.metric != Classification.metric:
            raise ConfigError(
                "test images are taken whole", where="test_size", expected="none", found=f"{recipe.test_size}"
            )
        self.steps = recipe.epochs * data.steps if steps is None else steps
        self.ledger = Ledger(label, recipe.model, data.name, seed, data.task.metric, protocol=data.protocol())
        self.ledger.average = recipe.decays[0] if recipe.decays else None
        self.checkpoints, self._at = checkpoints, _Position()
        if checkpoints is not None:
            _ = data.contents  # as it is now, and not when the first one is saved
        self._before: dict[str, Any] | None = None
        self._enough = False
        self._random = OwnRandom(self.device)
        with self._random.active():
            torch.manual_seed(seed)
            self.model = self._dense_model().train()
            begin_with(self.model, recipe.pretrained, recipe.model, data.num_classes)
            self.optimizer = build_optimizer(self.model, recipe)
            self.averages = [ModelEmaV3(self.model, decay) for decay in recipe.decays]
            self.stepper = Stepper(recipe, data.task, self.model, self.optimizer, self.averages)
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
                    ema=self.averages,
                    probe=Probe(self.stepper.loss, _Subset(self)),
                    exclude=recipe.exclude,
                    batch_size=images,
                    autocast=recipe.autocast,
                    hooks=False,
                )
            self._search, self._prune = self.attached.part(Choose), self.attached.part(Prune)
            if self._search is not None and self._search.chooses:
                self.subset()  # one that the data are too few for is refused now
            self._follow()  # a search may come before the first step
            with self.ledger.clock("trace", self.device):
                self.attached.begin_epoch(0)
                warn_of_lack(self.attached, images, self.device)
            self._account(self._searches, "trace")
            data.task.check(self.attached.network, images)
            if rank():  # dropout of its own from here on
                torch.manual_seed(hash((seed, rank())) % 2**63)
            self._follow()
            self._costs = Costs(self.attached, self._precision)
            self.ledger.dense = self.attached.network.dense.to_dict()
            self._open_stage(0)
            if self._prune is not None:
                dense, threshold = self.attached.network.dense, self._prune.policy.threshold
                price = self._costs.of_stage(0, dense, recipe.batch_size)
                self.ledger.pruned = PrunedRun(
                    replace(price, steps=self.steps, images=self.steps * recipe.batch_size), threshold
                )
                self._mapped = mapped_layers(self.attached.network, recipe.sparsity_map)

    @property
    def total_epochs(self) -> int:
        """Epochs of this run, the last perhaps cut short."""
        return -(-self.steps // self.data.steps)

    @property
    def result(self) -> nn.Module:
        """What is tested and saved: the moving average of the weights where the recipe keeps one, the best of several,
        else the model."""
        best = self.ledger.average
        return self.model if best is None else self.averages[self.recipe.decays.index(best)].module

    @property
    def position(self) -> tuple[int, int, int]:
        """The epoch at work, the steps of it that are taken, and how many it has."""
        return self._at.epoch, self._at.step or 0, len(self._counts_left(self._at.epoch))

    @property
    def flop_share(self) -> float:
        """Training FLOPs of an image now, of those of the dense network."""
        stage = self.ledger.stages[-1]
        return stage.training_flops / stage.batch_size / self._flops_of(self.attached.network.dense)

    def epochs_left(self, epoch: int) -> float:
        """Epochs from this one on, as long as those before it: by the FLOPs of the sub-networks that are to come."""
        stage = self.ledger.stages[-1]
        now, stages = stage.training_flops / stage.batch_size, self.attached.stages
        ends = [*(stage.start for stage in stages[1:]), self.total_epochs]
        left = [
            (part.subnetwork, min(end, self.total_epochs) - max(part.start, epoch))
            for part, end in zip(stages, ends, strict=True)
        ]
        return sum(count * self._flops_of(part) / now for part, count in left if count > 0)

    def _flops_of(self, subnetwork: SubNetwork) -> float:
        """Training FLOPs of an image."""
        with self._random.active(), self.ledger.clock("accounting", self.device):
            return self._costs.of_step(subnetwork, self.batch_size).training / self.batch_size

    def epochs(self) -> Iterator[Epoch]:
        """Train, from where the run is; yield each epoch's figures when it is over.

        Raises:
            TrainingError: a loss that is not finite; the ledger holds everything up to that epoch.
            Stopped: it was asked to stop, and has saved a checkpoint.
        """
        try:
            while self._at.epoch < self.total_epochs and not self._enough:
                try:
                    with self._random.active():
                        epoch = self._epoch(self._at.epoch)
                except DivergedError as error:
                    self._rescue(error)
                    continue
                self._at = _Position(self.attached.next_epoch(self._at.epoch))
                yield epoch
            self._end()
            saved = saved_schedule(self.attached)
            self.ledger.schedule = saved.to_dict() if saved else None
            self.ledger.predicted_speedup = predicted_speedup(self.attached)
        except (Exception, KeyboardInterrupt) as error:
            self.attached.close()
            self.ledger.stopped = first_line(error)
            raise

    def stop_early(self) -> None:
        """End after the epoch that is over, as if it had been the last."""
        self._enough = True

    @property
    def is_growing(self) -> bool:
        """Whether a search is at work, or a stage is still to come."""
        return self._searching is not None or self.attached.epoch < self.attached.stages[-1].start

    def _epoch(self, number: int) -> Epoch:
        ledger = self.ledger
        if self._at.step is None:
            grows = self.recipe.rescue and number in {stage.start for stage in self.attached.stages[1:]}
            self._before = copy.deepcopy(self.state_dict()) if grows else None
            self._begin(number)
            self._at.step = 0
            self._step_is_over()
        loss = self._train_epoch(number)
        accuracy, others = self._evaluate()
        epoch = Epoch(number, loss, accuracy, ledger.training_seconds, others)
        ledger.epochs.append(epoch)
        ledger.note_memory(self.device)
        if ledger.pruned is not None and self._prune is not None:
            ledger.pruned.coefficient = self._prune.pruner.coefficient
            with ledger.clock("accounting", self.device):
                for layer, maxima in output_maxima(self.attached.network, self._mapped).items():
                    ledger.pruned.sparsity.setdefault(layer, []).append(maxima)
        return epoch

    def _begin(self, number: int) -> None:
        """Whatever changes before the first step of an epoch."""
        ledger, attached = self.ledger, self.attached
        searched, searching, batch_size = len(self._searches), self._searching, self.batch_size
        with ledger.clock("morph", self.device):
            receipt = attached.begin_epoch(number)
            if receipt is not None or self._searching is not searching or self.batch_size != batch_size:
                self._follow()
        self._account(self._searches[searched:], "morph")
        if len(attached.history) > len(ledger.history) or self.batch_size != ledger.stages[-1].batch_size:
            self._open_stage(number)
        if receipt is not None:
            with FeatureMaps(attached.network, self.result, receipt.before) as maps:
                before, (after, _) = ledger.epochs[-1].accuracy, self._evaluate()
            ledger.morphs.append(
                MorphEvent(number, before, after, receipt.seconds, ledger.training_seconds, maps.correlations())
            )
            old, new = receipt.before, receipt.after
            resized = (old.channels, old.blocks) == (new.channels, new.blocks)  # falls, and comes back in an epoch
            if before - after > self.recipe.warn_drop and not resized:
                warnings.warn(
                    f"epoch {number}: {ledger.metric} fell from {before:.1f} to {after:.1f} % at a change of size, by "
                    f"more than warn_drop={self.recipe.warn_drop:g} points; more stages or another operator lose less",
                    stacklevel=2,
                )

    def _rescue(self, error: DivergedError) -> None:
        """Go back to before the morph that began the epoch, and begin it otherwise; where nothing is left to try,
        raise the error."""
        before, number = self._before, self._at.epoch
        if before is None:
            raise error
        options = self.recipe.rescue[sum(rescue["epoch"] == number for rescue in self.ledger.rescues) :]
        spent, rescues = dict(self.ledger.seconds), self.ledger.rescues
        self.load_state_dict(before)
        self.ledger.seconds, self.ledger.rescues = spent, rescues  # what was tried in vain took its time
        for option in options:
            rescues.append({"epoch": number, "option": option, "error": first_line(error)})
            try:
                self.attached.revise(number, option)
            except ConfigError:
                continue
            warnings.warn(f"{first_line(error)}; back to before the morph of this epoch, {TOLD[option]}", stacklevel=2)
            return
        raise error

    def state_dict(self) -> dict[str, Any]:
        """All that the run goes on from, between two steps: plain data and tensors."""
        self.ledger.read_clocks()
        return {
            "run": self._identity(),
            "data": self.data.contents,
            "epoch": self._at.epoch,
            "step": self._at.step,
            "losses": [float(loss) for loss in _of_all_ranks(self._at.losses)],
            "random": gathered(self._random.now()),
            "attached": self.attached.state_dict(),
            "stepper": self.stepper.state_dict(),
            "ledger": self.ledger.record(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same run; raises CheckpointError, with nothing changed, where it is another's."""
        try:
            compare_runs({**state["run"]}, self._identity())
            compare_contents({**state["data"]}, self.data.contents)
            epoch, step = int(state["epoch"]), None if state["step"] is None else int(state["step"])
            losses = [torch.tensor(float(loss), device=self.device) for loss in state["losses"]]
            ledger, random = Ledger.from_record(state["ledger"]), list(state["random"])
            if any(len(each) != len(self._random.state) for each in random):
                raise CheckpointError("the checkpoint is of a run on another kind of device", where="device")
            attached, stepper = state["attached"], dict(state["stepper"])
            if step is not None and epoch != attached["progress"]["epoch"]:
                raise ValueError("the run and its network are at different epochs")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint is damaged ({first_line(error)})") from error
        with self._random.active():
            self.attached.load_state_dict(attached)
        self._at, self.ledger = _Position(epoch, step, losses), ledger
        self.ledger.stopped = None
        if len(random) == ranks():
            self._random.state = random[rank()]
        else:  # other ranks than before: dropout begins anew, the same whenever it does from here
            with self._random.active():
                torch.manual_seed(hash((self.seed, epoch, -1 if step is None else step, rank())) % 2**63)
        self._follow()
        self.stepper.load_state_dict(stepper)

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be the same run."""
        recipe = self.recipe.deciding()
        data = f"{self.data.name}, {self.data.images} images of {self.data.image_size} pixels"
        return recipe | {"data": data, "method": self.ledger.method, "seed": self.seed, "steps": self.steps}

    def _end(self) -> None:
        """What a method takes out when training is over."""
        ledger, last = self.ledger, self.ledger.epochs[-1]
        with self._random.active(), ledger.clock("morph", self.device):
            receipt = self.attached.end()
        if receipt is not None:
            self._open_stage(self.total_epochs)
            before, (last.accuracy, last.figures) = last.accuracy, self._evaluate()
            last.seconds = ledger.training_seconds
            ledger.morphs.append(
                MorphEvent(self.total_epochs, before, last.accuracy, receipt.seconds, ledger.training_seconds)
            )
        if self.recipe.test_size is not None:
            with self._random.active(), ledger.clock("evaluation", self.device):
                ledger.tested_at = self._evaluate_at(self.recipe.test_size)
        if ledger.pruned is not None:
            with self._random.active(), ledger.clock("accounting", self.device), self._precision():
                ledger.pruned.density = densities(self.attached.network, ledger.pruned.threshold)
                with suppress(RuntimeError):  # out of memory; a finished run is not lost to a figure
                    ledger.pruned.inference = inference_speeds(
                        self._dense_model(), self.result, self._example, self.device
                    )

    def _train_epoch(self, number: int) -> float:
        """One pass over the data, or what is left of it; returns the mean loss."""
        self.model.train()
        at, counts = self._at, self._counts_left(number)
        assert at.step is not None
        with self.ledger.clock("step", self.device):
            left = len(counts) - at.step
            for images, labels in itertools.islice(self._timed(self._batches(number, at.step)), left):
                self._set_learning_rate(number, sum(counts[: at.step]), len(images))
                with self.ledger.clock("compile", self.device) if self.stepper.compiles else nullcontext():
                    at.losses.append(self.stepper.take(images, labels))
                at.step += 1
                if at.step % CHECK_EVERY == 0:
                    check_finite(_of_all_ranks(at.losses[-CHECK_EVERY:]), number, at.step - CHECK_EVERY)
                self._step_is_over()
            at.losses = _of_all_ranks(at.losses)
            check_finite(at.losses, number, 0)
        with self.ledger.clock("accounting", self.device):
            stage = self.ledger.stages[-1]
            flops = sum(
                self._costs.of_step(self.attached.runs(step), count).training for step, count in enumerate(counts)
            )
            stage.add(len(counts), sum(counts), flops)
        return float(torch.stack(at.losses).mean())

    def _step_is_over(self) -> None:
        """Save where it is time to."""
        if self.checkpoints is not None:
            with self.ledger.clock("checkpoint", self.device):
                self.checkpoints.after_step(self._at.epoch, self._at.step or 0, self.state_dict)

    def _batches(self, number: int, first: int) -> Iterator[TrainBatch]:
        """The training images of an epoch, from a step on, as its sub-network and its method want them."""
        attached = self.attached
        return self.data.train_batches(
            self.seed,
            number,
            [
                attached.runs(step).resolution or self.data.size
                for step in range(len(self.data.step_sizes(self.batch_size)))
            ],
            (attached.part(Resize) or Resize()).kind,
            attached.regularisation(number),
            self.batch_size,
            first,
        )

    @property
    def batch_size(self) -> int:
        """Images in a step of this epoch; its last may have fewer."""
        return ranks() * (self.attached.batch_size or share(self.recipe.batch_size))

    def _counts_left(self, number: int) -> list[int]:
        """Images in each step of an epoch that this run has left; a step that is begun is taken whole."""
        left = (self.steps - number * self.data.steps) * self.recipe.batch_size
        counts = self.data.step_sizes(self.batch_size)
        begins = itertools.accumulate(counts, initial=0)
        return [count for count, begin in zip(counts, begins, strict=False) if begin < left]

    def _set_learning_rate(self, number: int, seen: int, images: int) -> None:
        """That of a step of an epoch: by the images seen before it in the epoch, and by its own.

        A shortened run warms up for the same share of its steps. Where the method begins the schedule anew, each part
        is like a run of its own.
        """
        done = (number + seen / (self.data.steps * self.recipe.batch_size)) * self.data.steps
        restarts = [epoch * self.data.steps for epoch in self.attached.assembly.restarts]
        begin = max(at for at in (0, *restarts) if at <= done)
        length = min(at for at in (*restarts, self.steps) if at > begin) - begin
        warmup = length * self.recipe.warmup_epochs // self.recipe.epochs
        share = share_of_peak(self._shape, done - begin, length, warmup)
        batch = self.attached.part(Batch)
        scale = 1.0 if batch is None else batch.batching.lr_scale_of(images)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * share * scale

    def _follow(self) -> None:
        """The model has another size, or the batch."""
        self.stepper.follow(self.attached, self.batch_size // ranks())

    def subset(self) -> Iterable[TrainBatch]:
        """What a search compares candidates on: the same images every time, as in the epoch of training before."""
        assert self._search is not None
        count = self._search.images_of(self.data.images, self.recipe.batch_size)
        return self.data.subset(count, self.seed, self.attached.regularisation(max(0, self.attached.epoch)))

    def _account(self, searches: Sequence[Found], within: str) -> None:
        """Put searches in the ledger, and their time on their own line, which was on another one so far."""
        for found in searches:
            self.ledger.seconds["search"] += found.seconds
            self.ledger.seconds["step"] -= found.within_steps
            self.ledger.seconds[within] -= found.seconds - found.within_steps
            self.ledger.searches.append(found.record())

    @property
    def _searches(self) -> list[Found]:
        return [] if self._search is None else self._search.searches

    @property
    def _searching(self) -> Searching | None:
        return None if self._search is None else self._search.searching

    def _timed(self, batches: Iterator[TrainBatch]) -> Iterator[TrainBatch]:
        """The batches, with the time until each is there on the data's account."""
        cpu = torch.device("cpu")  # the host's wait; a GPU goes on with its queue meanwhile
        while True:
            with self.ledger.clock("data", cpu):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _precision(self) -> AbstractContextManager[None]:
        return precision_of(self.recipe, self.device)

    def _evaluate(self) -> tuple[float, dict[str, float]]:
        """The task's figure in percent, of the network that rank 0 saves, and what else its test tells; of several
        averages the best one's."""
        metric, size, found = self.ledger.metric, self.attached.network.current.resolution, list[dict[str, float]]()
        with self.ledger.clock("evaluation", self.device):
            for model in [average.module for average in self.averages] or [self.model]:
                spread(model.buffers())  # running statistics are each rank's own
                found.append(self._tested(model, size, self.data.task.evaluate, self.device))
        best = max(range(len(found)), key=lambda number: found[number][metric])
        if self.averages:
            self.ledger.average = self.recipe.decays[best]
        return found[best].pop(metric), found[best]

    def _evaluate_at(self, side: int) -> dict[str, Any]:
        """The same of the finished network on images of another size, without training there (AutoProg, Table 2).

        Raises:
            SubNetworkError: the model cannot run at this size.
        """
        model = copy.deepcopy(self.result).eval()
        network = trace(model, self._example(2))
        morph(network, network.subnetwork(resolution=(side, side)))
        figures = self._tested(model, (side, side), self.data.task.evaluate, self.device)
        return {"size": side, "shown": self.data.shown(side), "accuracy": figures[self.ledger.metric]}

    def _tested(self, model: nn.Module, size: Size | None, test: Callable[..., T], *arguments: Any) -> T:
        """What a function of the task makes of a network and the test images at a size."""
        model.eval()
        with torch.inference_mode(), self._precision():
            batches = self.data.test_batches(size)
            return test(lambda images: model(laid_out(images, self.recipe)), batches, *arguments)

    def draw(self, folder: Path) -> list[Path]:
        """Write pictures of predictions, where the task has any."""
        size, statistics = self.attached.network.current.resolution, {"mean": self.data.mean, "std": self.data.std}
        return self._tested(self.result, size, self.data.task.draw, statistics, folder, self.data.classes)

    def _open_stage(self, epoch: int) -> None:
        """Enter the sub-network that trains from here on."""
        network = self.attached.network
        with self.ledger.clock("accounting", self.device):
            searching = self._searching is not None
            stage = self._costs.of_stage(epoch, network.current, self.batch_size, searching)
            if self._prune is not None:
                policy = self._prune.policy
                stage.gated = gated_share(network, stage.inference_flops, policy.threshold, folded=policy.folded)
            self.ledger.stages.append(stage)
            self.ledger.history = [
                {"epoch": at, "subnetwork": subnetwork.to_dict()} for at, subnetwork in self.attached.history
            ]

    def _dense_model(self) -> nn.Module:
        """The recipe's model, made anew on the device."""
        model = build_model(self.recipe.model, self.data.num_classes, self.recipe.drop_path).to(self.device)
        if self.recipe.channels_last:
            model.to(memory_format=torch.channels_last)  # pyright: ignore  (PyTorch's stubs lack it)
        return model

    def _example(self, batch_size: int) -> torch.Tensor:
        return laid_out(self.data.example(batch_size).to(self.device), self.recipe)

    def save(self, path: Path) -> None:
        """Write the weights, the sub-network they belong to, and what a method keeps: momentum network, coefficient.

        A file already there stays until the new one is whole; `morphogen export` reads it.

        Raises:
            ExportError: a weight or buffer is not finite, or the file cannot be written.
        """
        check_finite_network(self.result)
        path.parent.mkdir(parents=True, exist_ok=True)
        notes = {
            "model": self.recipe.model,
            "num_classes": f"{self.data.num_classes}",
            "drop_path": f"{self.recipe.drop_path}",
            "mean": json.dumps(self.data.mean.tolist()),  # of the images, by channel, from 0 to 1
            "std": json.dumps(self.data.std.tolist()),
            "classes": json.dumps(list(self.data.classes)),
            **self.data.framing(max(self.attached.network.current.resolution or self.data.size)),
        }
        content = {"state_dict": self.result.state_dict(), **metadata_of(self.attached.network, notes)}
        for average in self.attached.averages:
            content["momentum"] = average.state_dict()
        if self._prune is not None:
            content["penalty_coefficient"] = self._prune.pruner.coefficient
        with replaced(path) as file:
            torch.save(content, file)


def _of_all_ranks(losses: list[torch.Tensor]) -> list[torch.Tensor]:
    """Means over the ranks."""
    return list(mean(torch.stack(losses))) if losses else []


class _Subset:
    """A run's subset, made anew for every search."""

    def __init__(self, run: Run):
        self._run = run

    def __iter__(self) -> Iterator[TrainBatch]:
        return iter(self._run.subset())


@dataclass
class _Position:
    """Where a run is.

    Attributes:
        epoch: the one at work.
        step: how many of its steps are taken; None before it has begun.
        losses: of these steps.
    """

    epoch: int = 0
    step: int | None = None
    losses: list[torch.Tensor] = field(default_factory=list)

"""The reference trainer: a plain loop that a method is attached to, and a clock on every part of it."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from ..errors import CheckpointError, ConfigError, DivergedError, first_line
from ..machine.ranks import gathered, mean, rank, ranks, spread
from ..methods import GrowOnce, Method
from ..parts import Batch, Choose, Resize
from ..report.correlations import FeatureMaps
from ..report.ledger import Epoch, Ledger
from ..report.outcome import predicted_speedup, saved_schedule
from ..run.attach import attach
from ..schedule.learning_rate import shape_named, share_of_peak
from ..search.candidates import Found, Probe
from ..search.searching import Searching
from .books import Books
from .checkpoint import Checkpoints, compare_runs
from .contents import compare_contents
from .data import Data, TrainBatch
from .distributed import share
from .memory_format import in_memory_format
from .models import build_model
from .objective import build_optimizer, check_finite, check_pairs
from .own_random import OwnRandom
from .pretrained import begin_with
from .recipe import Recipe
from .room import warn_of_lack
from .stepper import Stepper
from .testing import Tester

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
        books: what enters the ledger of the network.
        tester: of the networks.
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
            self.model, recipe = self._dense_model()
            self.model.train()
            self.tester = Tester(recipe, data, self.device)
            begin_with(self.model, recipe.pretrained, recipe.model, data.num_classes, boxes=data.task.boxes)
            if recipe.pretrained and isinstance(method, GrowOnce) and not method.pretrained:
                warnings.warn(
                    "GrowOnce begins at 3/8 of the images' side, where what was learnt at full size is worth little; "
                    "for pretrained weights take GrowOnce(pretrained=True)",
                    stacklevel=2,
                )
            self.optimizer = build_optimizer(self.model, recipe)
            self.averages = [ModelEmaV3(self.model, decay) for decay in recipe.decays]
            self.stepper = Stepper(recipe, data.task, self.model, self.optimizer, self.averages)
            example = data.example(recipe.batch_size).to(self.device)
            epochs, part = -(-self.steps // data.steps), data.task.part
            with self.ledger.clock("trace", self.device):
                self.attached = attach(
                    self.traced(self.model),
                    self.optimizer,
                    method,
                    example=example,
                    epochs=epochs,
                    steps_per_epoch=data.steps,
                    ema=[self.traced(average.module) for average in self.averages] if part else self.averages,
                    probe=Probe(self.stepper.loss, _Subset(self)),
                    exclude=recipe.exclude,
                    batch_size=images,
                    autocast=recipe.autocast,
                    hooks=False,
                )
            self._search = self.attached.part(Choose)
            if self._search is not None and self._search.chooses:
                self.subset()  # one that the data are too few for is refused now
            self._follow()  # a search may come before the first step
            with self.ledger.clock("trace", self.device):
                self.attached.begin_epoch(0)
                warn_of_lack(self.attached, images, self.device)
            data.task.check(self.attached.network, images)
            if rank():  # dropout of its own from here on
                torch.manual_seed(hash((seed, rank())) % 2**63)
            self._follow()
            beside = partial(data.task.beside, self.model)
            self.books = Books(self.ledger, self.attached, recipe, self.device, self.steps, self.batch_size, beside)
            for found in self._searches:
                self.books.add_search(found, "trace")

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

    def traced(self, model: nn.Module) -> nn.Module:
        """What changes its size of a model, or of an average of it."""
        return model.get_submodule(self.data.task.part)

    @property
    def position(self) -> tuple[int, int, int]:
        """The epoch at work, the steps of it that are taken, and how many it has."""
        return self._at.epoch, self._at.step or 0, len(self._counts_left(self._at.epoch))

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
            self._before = None  # which is in the state
            self._before = copy.deepcopy(self.state_dict()) if grows else None
            self._begin(number)
            self._at.step = 0
            self._step_is_over()
        loss = self._train_epoch(number)
        accuracy, others = self._evaluate()
        epoch = Epoch(number, loss, accuracy, ledger.training_seconds, others)
        ledger.epochs.append(epoch)
        self.books.end_epoch()
        return epoch

    def _begin(self, number: int) -> None:
        """Whatever changes before the first step of an epoch."""
        ledger, attached = self.ledger, self.attached
        searched, searching, batch_size = len(self._searches), self._searching, self.batch_size
        with ledger.clock("morph", self.device):
            receipt = attached.begin_epoch(number)
            if receipt is not None or self._searching is not searching or self.batch_size != batch_size:
                self._follow()
        for found in self._searches[searched:]:
            self.books.add_search(found, "morph")
        if self.books.is_behind or self.batch_size != ledger.stages[-1].batch_size:
            self.books.open_stage(number, self.batch_size)
        if receipt is not None:
            with FeatureMaps(attached.network, self.traced(self.result), receipt.before) as maps:
                before, (after, _) = ledger.epochs[-1].accuracy, self._evaluate()
            self.books.add_morph(number, before, after, receipt, maps.correlations())

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
            "beside": [self._beside(model) for model in self._models],
            "stepper": self.stepper.state_dict(),
            "ledger": self.ledger.record(),
            "before": self._before,
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
            beside = list(state.get("beside", [{} for _ in self._models]))  # earlier checkpoints have none
            before = None if state.get("before") is None else {**state["before"]}
            self._check_beside(beside)
            if step is not None and epoch != attached["progress"]["epoch"]:
                raise ValueError("the run and its network are at different epochs")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint is damaged ({first_line(error)})") from error
        with self._random.active():
            self.attached.load_state_dict(attached)
        for model, saved in zip(self._models, beside, strict=True):
            model.load_state_dict(saved, strict=False)
        self._at, self._before = _Position(epoch, step, losses), before
        self.ledger.become(ledger)
        self.ledger.stopped = None
        if len(random) == ranks():
            self._random.state = random[rank()]
        else:  # other ranks than before: dropout begins anew, the same whenever it does from here
            with self._random.active():
                torch.manual_seed(hash((self.seed, epoch, -1 if step is None else step, rank())) % 2**63)
        self._follow()
        self.stepper.load_state_dict(stepper)

    @property
    def _models(self) -> list[nn.Module]:
        """The model and its averages."""
        return [self.model, *(average.module for average in self.averages)]

    def _beside(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The tensors of a model that are not of what is traced."""
        part = self.data.task.part
        return {n: t for n, t in model.state_dict().items() if not n.startswith(f"{part}.")} if part else {}

    def _check_beside(self, saved: list[dict[str, torch.Tensor]]) -> None:
        """Raises ValueError where they are not the tensors beside the traced ones."""
        ours = [{n: (t.shape, t.dtype) for n, t in self._beside(model).items()} for model in self._models]
        if ours != [{n: (t.shape, t.dtype) for n, t in each.items()} for each in saved]:
            raise ValueError("the tensors beside the traced ones are another model's")

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
            self.books.open_stage(self.total_epochs, self.batch_size)
            before, (last.accuracy, last.figures) = last.accuracy, self._evaluate()
            last.seconds = ledger.training_seconds
            self.books.add_morph(self.total_epochs, before, last.accuracy, receipt)
        with self._random.active():
            if self.recipe.test_size is not None:
                with ledger.clock("evaluation", self.device):
                    ledger.tested_at = self.tester.figures_at(self.result, self.recipe.test_size)
            self.books.close(lambda: self._dense_model()[0], self.result, self.tester.example)

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
        self.books.add_steps(counts)
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

    def _evaluate(self) -> tuple[float, dict[str, float]]:
        """The task's figure in percent, of the network that rank 0 saves, and what else its test tells; of several
        averages the best one's."""
        metric, size, found = self.ledger.metric, self.attached.network.current.resolution, list[dict[str, float]]()
        with self.ledger.clock("evaluation", self.device):
            for model in [average.module for average in self.averages] or [self.model]:
                spread(model.buffers())  # running statistics are each rank's own
                found.append(self.tester.figures(model, size))
        best = max(range(len(found)), key=lambda number: found[number][metric])
        if self.averages:
            self.ledger.average = self.recipe.decays[best]
        return found[best].pop(metric), found[best]

    def _dense_model(self) -> tuple[nn.Module, Recipe]:
        """The recipe's model, made anew on the device in its memory format, and the recipe as it holds there."""
        model = build_model(self.recipe.model, self.data.num_classes, self.recipe.drop_path).to(self.device)
        self.data.task.prepare(model)
        return model, in_memory_format(model, self.recipe, max(self.data.size))


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

"""A method inside anyone's own training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .batching import Batching
from .errors import ConfigError
from .fake import Example
from .graph.trace import trace
from .memory import StepMemory, kept_tensors
from .methods import Method
from .momentum import MomentumNetwork
from .morph.commit import Receipt, morph
from .morph.drop_path import lay_out_drop_path
from .morph.entry import depth_named
from .morph.optimizer import begin_together, check_optimizers
from .morph.rehearsal import rehearse
from .morph.rezero import fold_factors, has_factor
from .morph.tensors import map_tensors
from .network import Network
from .parallel import wrap_anew
from .pruning.pruner import Pruner
from .ranks import check_same, decided, spread
from .resize import resized
from .schedule.revision import Option, revised
from .schedule.stages import Regularisation, Stage
from .search.candidates import Found, Probe
from .search.searching import Searching
from .snapshot import Snapshot, parameter_names
from .state import restore, state_of
from .subnet import SubNetwork, intersection


@dataclass
class Attached:
    """A method at work on a model.

    Attributes:
        network: the traced model; `network.current` is what trains now, in a search the whole supernet.
        stages: the schedule of this run, as far as it is known.
        epochs: length of the run.
        memory: of a step of any sub-network, modelled.
        steps_per_epoch: optimizer steps in an epoch, where the method needs to know.
        probe: what a method that searches measures candidates with.
        pruner: the group lasso at work, where the method prunes.
        batching: sets the batch of each sub-network, where the method has a mini-batch.
        first_batch: images in a step of the dense network, where they were given.
        momentum: the average that grown blocks will come from; None where none is needed any more.
        searching: the elastic supernet at work, in a stage with candidates.
        searches: the outcome of every search so far.
        history: (epoch, sub-network) of each stage so far, the first at epoch 0; it replays the run.
        revisions: (epoch, option) of each stage that was put off, see `revise`.
    """

    network: Network
    method: Method
    stages: Sequence[Stage]
    optimizer: Optimizer | Sequence[Optimizer]
    ema: nn.Module | Sequence[nn.Module] | None
    epochs: int
    memory: StepMemory
    steps_per_epoch: int | None = None
    probe: Probe | None = None
    pruner: Pruner | None = None
    batching: Batching | None = None
    first_batch: int | None = None
    momentum: MomentumNetwork | None = field(default=None, init=False)
    searching: Searching | None = field(default=None, init=False)
    searches: list[Found] = field(default_factory=list, init=False)
    history: list[tuple[int, SubNetwork]] = field(default_factory=list, init=False)
    revisions: list[tuple[int, str]] = field(default_factory=list, init=False)
    _stage: Stage | None = field(default=None, init=False)
    _epoch: int = field(default=-1, init=False)
    _left: SubNetwork = field(init=False)
    """The dense network without what has been pruned."""
    _kept: Snapshot | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._left = self.network.dense

    def begin_epoch(self, epoch: int) -> Receipt | None:
        """Call before the first batch of every epoch, counted from 0; morphs where the schedule says.

        A search that is over is decided first: the candidates are measured, and the best goes on training. Then the
        network is reconfigured, where the method prunes and an interval is over, and then it grows. A
        DistributedDataParallel around the model is brought up to date, whoever holds it.

        Returns:
            What the morph did, of several the last; None where the network stays as it is.

        Raises:
            ConfigError: an epoch below 0, or one that a search does not allow (see `next_epoch`).
            MorphError: see `morph`.
            TrainingError: see `search` and `wrap_anew`.
        """
        if epoch < 0:
            raise ConfigError("epoch out of range", expected="epochs counted from 0", found=f"{epoch}")
        searching = self.searching
        receipt = self._decide() if self._search_is_over(epoch) else None
        # Before anything enters: what has not trained yet would be judged by what it was filled with.
        receipt = self._reconfigure(self._epoch, epoch) or receipt
        number = max(i for i, stage in enumerate(self.stages) if stage.start <= epoch)
        stage, self._epoch = self.stages[number], epoch
        self.network.drop_path_scale = self.regularisation(epoch).drop_path
        if stage != self._stage:
            receipt = self._enter(stage, number) or receipt
        elif self.searching is not None:
            self.searching.begin_epoch()
        lay_out_drop_path(self.network)
        if self.batching is not None:
            self.batching.follow(self.network.current)
            self.batching.begin_epoch(self._kept_tensors())
        if receipt is not None or self.searching is not None or searching is not None:
            self._wrap_anew()
        return receipt

    @property
    def batch_size(self) -> int | None:
        """Images in a step of this epoch, on each rank; None where `attach` was not told of any."""
        return self.first_batch if self.batching is None else self.batching.size

    @property
    def lr_scale(self) -> float:
        """What the learning rate of this epoch's steps is to be multiplied by, because of their batch."""
        return 1.0 if self.batching is None else self.batching.lr_scale

    def next_epoch(self, epoch: int) -> int:
        """The epoch to train after this one.

        It is the next one, except after a search without weight recycling: the search's epochs are thrown away, and
        the stage begins again with what was found.
        """
        stage = self._stage
        thrown_away = stage is not None and stage.choose_at == epoch + 1 and self._kept is not None
        return stage.start if stage is not None and thrown_away else epoch + 1

    def runs(self, step: int) -> SubNetwork:
        """The sub-network that a step of the present epoch runs, on every rank the same."""
        if self.searching is None:
            return self.network.current
        return self.searching.stage.candidates[self.searching.drawn(step)]

    def begin_step(self, images: torch.Tensor | None = None) -> torch.Tensor | None:
        """Call before every forward pass: in a search, another candidate runs in each step.

        Args:
            images: (N, C, H, W), of any size.

        Returns:
            The images at the resolution that this step runs at.
        """
        if self.batching is not None and self.searching is None:
            self.batching.begin_step()
        runs = self.network.current if self.searching is None else self.searching.begin_step()
        return images if images is None or runs.resolution is None else self._resized(images, runs.resolution)

    def penalised(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss with the group lasso, where the method prunes in this epoch; see `Pruner.penalised`.

        Args:
            loss: a scalar, of the task alone. Scale what is returned (1 / k for k accumulated gradients, a GradScaler's
                scale), not this.
        """
        return loss if self.pruner is None else self.pruner.penalised(loss, self._epoch)

    def end_step(self) -> None:
        """Call after every optimizer step: a supernet is whole again, the momentum network follows, a penalty that
        works as a proximal step takes it.

        Raises:
            ConfigError: in a search, without `begin_step`.
        """
        if self.searching is not None:
            self.searching.end_step()
        if self.pruner is not None:
            self.pruner.end_step(self._epoch)
        if self.momentum is not None:
            self.momentum.update_parameters(self.network.model)
        if self.batching is not None and self.searching is None:  # a candidate is not the supernet
            self.batching.end_step()

    def swapped(self) -> AbstractContextManager[None]:
        """Put this around a call of another method of the model than its `forward` (`forward_features`, say)."""
        return nullcontext() if self.searching is None else self.searching.supernet.swapped()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run goes on from, between two steps: the sub-network, weights, optimizers, averages,
        momentum network, schedule, history, searches, the penalty's coefficient and the batch.

        Dictionaries, lists, numbers, strings and tensors alone, so that `torch.load(..., weights_only=True)` reads it;
        the tensors are the run's own, not copies. The random numbers and the position in the data are the loop's.
        """
        return state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the model, its optimizers and averaged copies take its size and its values.

        The run was attached with the same model (its weights may be others), method, length and optimizers. After a
        state that was saved at the end of an epoch go on with `begin_epoch` of the next one (see `next_epoch`); after
        one saved within an epoch with the next step.

        Raises:
            CheckpointError: the state is damaged, or of another run; nothing is changed then.
        """
        restore(self, state)
        self._wrap_anew()

    def revise(self, epoch: int, option: Option) -> None:
        """Put off the stage that begins at an epoch which is still to come, or come back to by `load_state_dict`.

        For a loop that finds its loss no number right after a morph: go back to the state before it, revise, and call
        `begin_epoch` again.

        Args:
            epoch: counted from 0.
            option: `smaller` enters half of the new channels and blocks now and the rest an epoch later, `later` all of
                it an epoch later.

        Raises:
            ConfigError: see `revised`; or the epoch is past.
        """
        if epoch <= self._epoch:
            raise ConfigError("the epoch is past", expected=f"one above {self._epoch}", found=f"{epoch}")
        self.stages = revised(self.stages, epoch, option, self.epochs)
        self.revisions.append((epoch, option))

    def stages_after(self, found: Sequence[SubNetwork], revisions: Sequence[tuple[int, str]]) -> list[Stage]:
        """The schedule as far as it is known after searches that found these sub-networks, and after revisions."""
        stages = _distinct(self.method.continued(self.network, self.epochs, found))
        for epoch, option in revisions:
            stages = revised(stages, epoch, option, self.epochs)
        return stages

    def end(self) -> Receipt | None:
        """Call when training is over: what is sparse, and what a method keeps in the model while it trains, goes."""
        self.close()
        folds = any(map(has_factor, self.network.model.modules()))
        fold_factors(*self._followers())
        receipt = self._reconfigure(self._epoch, self.epochs)
        if folds or receipt is not None:  # otherwise one rank may end the run alone, to save it
            self._wrap_anew()
        return receipt

    def close(self) -> None:
        """Make an elastic supernet an ordinary network; where training stops in the middle of a search."""
        if self.searching is not None:
            self.searching.supernet.close()
            self.searching = None

    def regularisation(self, epoch: int) -> Regularisation:
        """How strong the recipe's regularisation is in an epoch."""
        return self.method.regularisation(epoch, self.epochs)

    def _search_is_over(self, epoch: int) -> bool:
        stage, searching = self._stage, self.searching
        if stage is None or stage.choose_at is None or searching is None:
            return False
        if self._kept is None:
            return epoch >= stage.choose_at
        if epoch >= stage.choose_at:
            raise ConfigError(
                "without weight recycling the epochs of a search are trained again",
                expected=f"epoch {stage.start}, as run.next_epoch({self._epoch}) says",
                found=f"epoch {epoch}",
            )
        return epoch == stage.start and self._epoch == stage.choose_at - 1 and searching.steps > 0

    def _decide(self) -> Receipt | None:
        """Measure the candidates; the stages that follow from the best one are known then."""
        assert self.searching is not None and self.probe is not None
        self.searches.append(self.searching.decide(self.probe, self._resized))
        self.close()
        receipt = None
        if self._kept is not None:
            if self.network.current != self._kept.subnetwork:
                receipt = self._morph(self._kept.subnetwork)
            self._kept.restore()
            self.momentum, self._kept = self._kept.momentum, None
        self.stages = self.stages_after([outcome.subnetwork for outcome in self.searches], self.revisions)
        return receipt

    def _enter(self, stage: Stage, number: int) -> Receipt | None:
        """Begin a stage."""
        if stage.choose_at is not None and stage.start != self._epoch:
            raise ConfigError(
                "a run cannot be joined in the middle of a search",
                expected=f"all epochs from {stage.start} on",
                found=f"epoch {self._epoch}",
            )
        if stage.choose_at is not None and self.steps_per_epoch is not None:
            steps = (stage.choose_at - stage.start) * self._steps_in(stage)
            if steps < len(stage.candidates):
                raise ConfigError(
                    "a search needs a step of every candidate",
                    expected=f"at least {len(stage.candidates)} steps",
                    found=f"{steps}, in {stage.choose_at - stage.start} epochs",
                    todo="Search for more epochs, or with smaller batches",
                )
        self.close()
        if stage.choose_at is not None and not self.method.recycle:
            fold_factors(*self._followers())
            self._kept = Snapshot(self.network, *self._followers(), self.momentum)
        target = intersection([stage.subnetwork, self._left])
        receipt = self._morph(target) if target != self.network.current else None
        self.history.append((self._epoch, target))
        self._average_for(number)
        if stage.candidates:
            begin_together(self._followers()[1])  # a step trains the blocks of one candidate alone
            self.searching = Searching(self.network, stage)
        self._stage = stage
        return receipt

    def _reconfigure(self, before: int, epoch: int) -> Receipt | None:
        """Take out what has become sparse, where an interval was over between two epochs."""
        if self.pruner is None or not any(before < at <= epoch for at in self.pruner.policy.at):
            return None
        old, left = self.network.current, decided(self.pruner.left())  # on another rank a rounding could differ
        if left == old:
            return None
        receipt = self._morph(left, grows=False)
        self._left = _without(self._left, old, left)
        self.history.append((epoch, left))
        return receipt

    def _morph(self, target: SubNetwork, *, grows: bool = True) -> Receipt:
        averages, momentum = _several(self.ema), self.momentum
        if momentum is not None and not grows:  # an average like any other: nothing comes from it
            averages, momentum = [*averages, momentum], None
        receipt = morph(
            self.network,
            target,
            optimizer=self.optimizer,
            ema=averages,
            operator=self.method.operator,
            depth_operator=self.method.depth_operator,
            momentum=momentum,
        )
        self._align(target)
        return receipt

    def _align(self, target: SubNetwork) -> None:
        """What the ranks filled each with its own random numbers becomes rank 0's."""
        trees = [*self._followers()[0], *([] if self.momentum is None else [self.momentum])]
        tensors = [tensor for tree in trees for tensor in (*tree.parameters(), *tree.buffers())]
        spread(tensors)
        check_same("the network after a morph", tensors, target.to_json())

    def _wrap_anew(self) -> None:
        wrap_anew(self.network.model, searching=self.searching is not None)

    def _resized(self, images: torch.Tensor, resolution: tuple[int, int]) -> torch.Tensor:
        return resized(images, resolution, self.method.resizing)

    def _steps_in(self, stage: Stage) -> int:
        """Optimizer steps of an epoch of a stage; 0 where they are not known."""
        steps = self.steps_per_epoch or 0
        return steps if self.batching is None else self.batching.steps_of(stage.subnetwork, steps)

    def _kept_tensors(self) -> list[torch.Tensor]:
        """All that is there between two steps."""
        trees, optimizers = self._followers()
        copies = [*trees[1:], *([] if self.momentum is None else [self.momentum])]
        return kept_tensors(self.network.model, *optimizers) + [
            tensor for copy in copies for tensor in (*copy.parameters(), *copy.buffers())
        ]

    def _followers(self) -> tuple[list[nn.Module], list[Optimizer]]:
        """The model and its averages, and its optimizers."""
        return [self.network.model, *_several(self.ema)], _several(self.optimizer)

    def _average_for(self, number: int) -> None:
        """Keep a momentum network in this stage if a later one grows from it."""
        nexts = [i for i in range(number + 1, len(self.stages)) if self._grows_from_average(i)]
        if self.method.momentum is None or not nexts:
            self.momentum = None
            return
        spans = zip(self.stages[number : nexts[0]], self.stages[number + 1 : nexts[0] + 1], strict=True)
        steps = sum((after.start - stage.start) * self._steps_in(stage) for stage, after in spans)
        decay = self.method.momentum.decay_over(steps)
        if self.momentum is None:
            self.momentum = MomentumNetwork(self.network.model, decay)
        self.momentum.decay = decay

    def _grows_from_average(self, number: int) -> bool:
        """Whether a stage takes weights from the momentum network: new blocks, or, in Momentum Growth, all."""
        before, after = (self.stages[i].subnetwork.blocks for i in (number - 1, number))
        return depth_named(self.method.depth_operator).everything or any(
            set(after[name]) - set(before[name]) for name in after
        )


def _without(whole: SubNetwork, old: SubNetwork, new: SubNetwork) -> SubNetwork:
    """A sub-network without what is in `old` and no more in `new`."""
    channels, blocks = (
        {name: tuple(sorted({*all_of_it} - ({*was[name]} - {*now[name]}))) for name, all_of_it in mine.items()}
        for mine, was, now in ((whole.channels, old.channels, new.channels), (whole.blocks, old.blocks, new.blocks))
    )
    return replace(whole, channels=channels, blocks=blocks)


def _distinct(stages: Sequence[Stage]) -> list[Stage]:
    """The stages that differ from the one before."""
    return [s for i, s in enumerate(stages) if i == 0 or replace(s, start=stages[i - 1].start) != stages[i - 1]]


def _check_optimizers(
    network: Network, optimizers: Sequence[Optimizer], possible: Sequence[SubNetwork], *, prunes: bool
) -> None:
    """Refuse, before the first stage and not after it, optimizers that cannot follow what is to come."""
    names, dense = parameter_names(network.model), network.dense
    if prunes or any(replace(each, resolution=dense.resolution) != dense for each in possible):
        check_optimizers(optimizers, names, names.values())
    elif any(each != dense for each in possible):
        check_optimizers(optimizers, names, {name for each in possible for name in map_tensors(network, dense, each)})


def _several(value: Any) -> list[Any]:
    """None, one, or several of something as a list."""
    return [] if value is None else [value] if isinstance(value, (nn.Module, Optimizer)) else list(value)


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    method: Method,
    *,
    example: Example,
    epochs: int,
    steps_per_epoch: int | None = None,
    ema: nn.Module | Sequence[nn.Module] | None = None,
    probe: Probe | None = None,
    exclude: Iterable[str] = (),
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> Attached:
    """Trace a model and bring it to the method's first sub-network; the loop stays the user's.

        run = morphogen.attach(model, optimizer, NetworkExpansion(width=0.5, stages=5), example=images, epochs=90)
        for epoch in range(90):
            run.begin_epoch(epoch)
            ...
            run.penalised(loss).backward()  # where the method prunes
            optimizer.step()
            run.end_step()  # where it keeps a momentum network, or takes proximal steps
        run.end()

    Frozen parameters (`requires_grad=False`) stay frozen and keep their values bit for bit: channels and blocks that
    come back have those they had here, whatever the operators, since nothing would ever train what these fill in. (A
    table that follows the resolution is interpolated.) What is frozen here and trained later grows like the rest; to
    keep a frozen part whole, name it in `exclude`.

    Args:
        model: the dense network, on its device; it is changed in place and ends dense, or as it was pruned.
        optimizer: its optimizer or optimizers, made from `model.parameters()` or those of them that are trained; each
            keeps its own groups. One that wraps another (Lookahead) or factors its moments (Adafactor) is refused.
        method: such as `NetworkExpansion(width=0.5, stages=5)`.
        example: an input of the size used in training; see `trace`.
        epochs: length of the run.
        steps_per_epoch: optimizer steps in an epoch (with `batch_size` images each); for a momentum network whose
            horizon is a share of its stage.
        ema: averaged copies of the model to change along.
        probe: loss and data that a method which searches compares its candidates with.
        exclude: module paths to leave whole.
        batch_size: images in a step of the dense network, on each rank; for a method with a mini-batch. The loop
            then takes `run.batch_size` images and multiplies its learning rate with `run.lr_scale` in every epoch.
        autocast: the type of autocast in training, for the memory that such a method reckons with.

    Raises:
        ConfigError: the method does not fit the run's length, the model or the first batch.
        TraceError, MorphError: see `trace` and `morph`; also where a later stage could not run, or an optimizer could
            not follow it.
    """
    if epochs < 1:
        raise ConfigError("epochs out of range", expected="at least 1", found=f"{epochs}")
    if method.momentum is not None and method.momentum.decay is None and steps_per_epoch is None:
        raise ConfigError(
            "the momentum network's horizon is a share of the stage, whose steps are not known",
            where=type(method).__name__,
            expected="attach(..., steps_per_epoch=...), or a decay",
        )
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
        raise ConfigError("batch_size out of range", expected="a whole number, at least 1", found=f"{batch_size}")
    if method.mini_batch is not None and batch_size is None:
        raise ConfigError(
            "the mini-batch is to grow, and the first one is not known",
            where=type(method).__name__,
            expected="attach(..., batch_size=...)",
        )
    network = trace(model, example, exclude=exclude)
    stages = _distinct(method.schedule(network, epochs))
    if method.searches and probe is None:
        raise ConfigError(
            "this method compares sub-networks while it trains, and has nothing to compare them with",
            where=type(method).__name__,
            expected="attach(..., probe=morphogen.Probe(loss=..., subset=...))",
        )
    possible, policy = method.possible(network, epochs), method.pruning(epochs)
    _check_optimizers(network, _several(optimizer), possible, prunes=policy is not None)
    rehearse(network, possible, method.depth_operator)
    pruner = None if policy is None else Pruner(network, policy, _several(optimizer))
    copies = len(_several(ema)) + (method.momentum is not None)
    memory = StepMemory(network, _several(optimizer), copies, autocast)
    batching = None
    if method.mini_batch is not None and batch_size is not None:
        batching = Batching(method.mini_batch, memory, _several(optimizer), batch_size, steps_per_epoch)
    attached = Attached(
        network,
        method,
        stages,
        optimizer,
        ema,
        epochs,
        memory,
        steps_per_epoch=steps_per_epoch,
        probe=probe,
        pruner=pruner,
        batching=batching,
        first_batch=batch_size,
    )
    attached.begin_epoch(0)
    return attached

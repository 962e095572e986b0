"""A method inside anyone's own training loop."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .elastic import ElasticSupernet
from .errors import ConfigError
from .fake import Example
from .graph.trace import trace
from .methods import Method
from .momentum import MomentumNetwork
from .morph.commit import Receipt, morph
from .morph.drop_path import lay_out_drop_path
from .morph.entry import depth_named
from .morph.rehearsal import rehearse
from .morph.rezero import fold_factors
from .network import Network
from .resize import resized
from .schedule.saved import SETTINGS, SavedSchedule, found_stages
from .schedule.stages import Regularisation, Stage
from .search import Found, Probe, search
from .snapshot import Snapshot
from .subnet import SubNetwork
from .timing import StepClock


@dataclass
class Attached:
    """A method at work on a model.

    Attributes:
        network: the traced model; `network.current` is what trains now, in a search the whole supernet.
        stages: the schedule of this run, as far as it is known.
        epochs: length of the run.
        steps_per_epoch: optimizer steps in an epoch, where the method needs to know.
        probe: what a method that searches measures candidates with.
        momentum: the average that grown blocks will come from; None where none is needed any more.
        supernet: in a stage with candidates, what runs as one of them in each step.
        searches: the outcome of every search so far.
        history: (epoch, sub-network) of each morph so far, the first at epoch 0; it replays the run.
    """

    network: Network
    method: Method
    stages: Sequence[Stage]
    optimizer: Optimizer | Sequence[Optimizer]
    ema: nn.Module | Sequence[nn.Module] | None
    epochs: int
    steps_per_epoch: int | None = None
    probe: Probe | None = None
    momentum: MomentumNetwork | None = None
    supernet: ElasticSupernet | None = None
    searches: list[Found] = field(default_factory=list)
    history: list[tuple[int, SubNetwork]] = field(default_factory=list)
    _stage: Stage | None = None
    _kept: Snapshot | None = None
    _again: bool = False
    _clock: StepClock | None = None
    _epoch: int = 0
    _step: int = 0

    def begin_epoch(self, epoch: int) -> Receipt | None:
        """Call before the first batch of every epoch, counted from 0; morphs where the schedule says.

        A search that is over is decided first: the candidates are measured, and the best goes on training.

        Returns:
            What the morph did, or None where the network stays as it is.
        """
        if epoch < 0:
            raise ConfigError("epoch out of range", expected="epochs counted from 0", found=f"{epoch}")
        if self._search_is_over(epoch):
            self._decide()
        number = max(i for i, stage in enumerate(self.stages) if stage.start <= epoch)
        stage, receipt = self.stages[number], None
        self._epoch, self._step = epoch, 0
        self.network.drop_path_scale = self.regularisation(epoch).drop_path
        if stage != self._stage:
            self._close()
            if stage.candidates and not self.method.recycle:
                self._fold()  # the next morph does, and the way back leads to a network without them
                self._kept = Snapshot(self.network, *self._followers())
            if stage.subnetwork != self.network.current:
                receipt = self._morph(stage.subnetwork)
            self.history.append((epoch, stage.subnetwork))
            self._average_for(number)
            if stage.candidates:
                self.supernet = ElasticSupernet(self.network, stage.candidates)
                self._clock = StepClock(next(self.network.model.parameters()).device)
            self._stage = stage
        lay_out_drop_path(self.network)
        return receipt

    def next_epoch(self, epoch: int) -> int:
        """The epoch to train after this one.

        It is the next one, except after a search without weight recycling: the search's epochs are thrown away, and
        the stage begins again with what was found.
        """
        stage = self._stage
        if stage is None or stage.choose_at != epoch + 1 or self._kept is None:
            return epoch + 1
        self._again = True
        return stage.start

    def runs(self, epoch: int, step: int) -> SubNetwork:
        """The sub-network that a step of an epoch of the present stage runs, on every rank the same."""
        if self.supernet is None:
            return self.network.current
        return self.supernet.candidates[_drawn(epoch, step, len(self.supernet.candidates))]

    def begin_step(self, images: torch.Tensor | None = None) -> torch.Tensor | None:
        """Call before every forward pass: in a search, another candidate runs in each step.

        Args:
            images: (N, C, H, W), of any size.

        Returns:
            The images at the resolution that this step runs at.
        """
        if self.supernet is not None and self._clock is not None:
            number = _drawn(self._epoch, self._step, len(self.supernet.candidates))
            self.supernet.run_as(number)
            self._clock.start(number)
        resolution = self.runs(self._epoch, self._step).resolution
        return images if images is None or resolution is None else self._resized(images, resolution)

    def swapped(self) -> AbstractContextManager[None]:
        """Put this around a call of another method of the model than its `forward` (`forward_features`, say)."""
        return nullcontext() if self.supernet is None else self.supernet.swapped()

    def end_step(self) -> None:
        """Call after every optimizer step; the momentum network follows, where the method has one."""
        self._step += 1
        if self.supernet is not None and self._clock is not None:
            self._clock.stop()
            self.supernet.run_as(None)
        if self.momentum is not None:
            self.momentum.update_parameters(self.network.model)

    def end(self) -> None:
        """Call when training is over: what a method keeps in the model while it trains goes."""
        self._close()
        self._fold()

    def regularisation(self, epoch: int) -> Regularisation:
        """How strong the recipe's regularisation is in an epoch."""
        return self.method.regularisation(epoch, self.epochs)

    def saved_schedule(self) -> SavedSchedule:
        """The schedule of this run, as far as it is known, for `Retrain`; what was searched is as if known ahead."""
        method = self.method
        settings = {name: getattr(method, name) for name in SETTINGS}
        for name in ("operator", "depth_operator"):
            settings[name] = settings[name] if isinstance(settings[name], str) else settings[name].__name__
        strengths = [astuple(self.regularisation(epoch)) for epoch in range(self.epochs)]
        return SavedSchedule(self.epochs, found_stages(self.stages), settings, tuple(strengths))

    def predicted_speedup(self) -> float | None:
        """Dense time by this run's, from the times that the searches measured; None where they do not tell."""
        seconds = {c.subnetwork: c.seconds for found in self.searches for c in found.candidates}
        total, dense = 0.0, seconds.get(self.network.dense)
        for stage, end in zip(self.stages, [*(s.start for s in self.stages[1:]), self.epochs], strict=True):
            parts = stage.candidates or (stage.subnetwork,)
            if dense is None or any(part not in seconds for part in parts):
                return None
            total += (end - stage.start) * sum(seconds[part] for part in parts) / len(parts)
        for found in self.searches if not self.method.recycle else ():
            total += found.epochs * sum(c.seconds for c in found.candidates) / len(found.candidates)
        return None if dense is None else self.epochs * dense / total

    def _search_is_over(self, epoch: int) -> bool:
        stage = self._stage
        return stage is not None and stage.choose_at is not None and (self._again or epoch >= stage.choose_at)

    def _decide(self) -> None:
        """Measure the candidates; the stages that follow from the best one are known then."""
        assert self.supernet is not None and self.probe is not None and self._clock is not None
        assert self._stage is not None and self._stage.choose_at is not None
        end, seconds = self._stage.choose_at, self._clock.medians()
        found = search(self.supernet, self.probe, seconds, self._resized, end, end - self._stage.start)
        self.searches.append(found)
        self._close()
        if self._kept is not None:
            self._morph(self._kept.subnetwork)
            self._kept.restore()
            self.momentum = self._kept.momentum
            self._kept, self._again = None, False
        outcomes = [outcome.subnetwork for outcome in self.searches]
        self.stages = _distinct(self.method.continued(self.network, self.epochs, outcomes))

    def _morph(self, target: SubNetwork) -> Receipt:
        return morph(
            self.network,
            target,
            optimizer=self.optimizer,
            ema=self.ema,
            operator=self.method.operator,
            depth_operator=self.method.depth_operator,
            momentum=self.momentum,
        )

    def _close(self) -> None:
        if self.supernet is not None:
            self.supernet.close()
            self.supernet = None

    def _fold(self) -> None:
        fold_factors([self.network.model, *_several(self.ema)], _several(self.optimizer))

    def _resized(self, images: torch.Tensor, resolution: tuple[int, int]) -> torch.Tensor:
        return resized(images, resolution, self.method.resizing)

    def _followers(self) -> tuple[list[Optimizer], list[nn.Module], MomentumNetwork | None]:
        return _several(self.optimizer), _several(self.ema), self.momentum

    def _average_for(self, number: int) -> None:
        """Keep a momentum network in this stage if a later one grows from it."""
        nexts = [i for i in range(number + 1, len(self.stages)) if self._grows_from_average(i)]
        if self.method.momentum is None or not nexts:
            self.momentum = None
            return
        steps = (self.stages[nexts[0]].start - self.stages[number].start) * (self.steps_per_epoch or 0)
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


def _drawn(epoch: int, step: int, count: int) -> int:
    """The candidate of a step: each once, in another order each time round, so that all are trained equally often."""
    order = random.Random(f"{epoch}/{step // count}").sample(range(count), count)
    return order[step % count]


def _distinct(stages: Sequence[Stage]) -> list[Stage]:
    """The stages that differ from the one before."""
    return [s for i, s in enumerate(stages) if i == 0 or replace(s, start=stages[i - 1].start) != stages[i - 1]]


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
) -> Attached:
    """Trace a model and bring it to the method's first sub-network; the loop stays the user's.

        run = morphogen.attach(model, optimizer, NetworkExpansion(width=0.5, stages=5), example=images, epochs=90)
        for epoch in range(90):
            run.begin_epoch(epoch)
            ...
            optimizer.step()
            run.end_step()  # where the method keeps a momentum network

    Args:
        model: the dense network, on its device; it is changed in place and ends dense.
        optimizer: its optimizer or optimizers, made from `model.parameters()`.
        method: such as `NetworkExpansion(width=0.5, stages=5)`.
        example: an input of the size used in training; see `trace`.
        epochs: length of the run.
        steps_per_epoch: optimizer steps in an epoch; for a momentum network whose horizon is a share of its stage.
        ema: averaged copies of the model to change along.
        probe: loss and data that a method which searches compares its candidates with.
        exclude: module paths to leave whole.

    Raises:
        ConfigError: the method does not fit the run's length or the model.
        TraceError, MorphError: see `trace` and `morph`; also where a later stage could not run.
    """
    if epochs < 1:
        raise ConfigError("epochs out of range", expected="at least 1", found=f"{epochs}")
    if method.momentum is not None and method.momentum.decay is None and steps_per_epoch is None:
        raise ConfigError(
            "the momentum network's horizon is a share of the stage, whose steps are not known",
            where=type(method).__name__,
            expected="attach(..., steps_per_epoch=...), or a decay",
        )
    network = trace(model, example, exclude=exclude)
    stages = _distinct(method.schedule(network, epochs))
    if method.searches and probe is None:
        raise ConfigError(
            "this method compares sub-networks while it trains, and has nothing to compare them with",
            where=type(method).__name__,
            expected="attach(..., probe=morphogen.Probe(loss=..., subset=...))",
        )
    rehearse(network, method.possible(network, epochs), method.depth_operator)
    attached = Attached(network, method, stages, optimizer, ema, epochs, steps_per_epoch, probe)
    attached.begin_epoch(0)
    return attached

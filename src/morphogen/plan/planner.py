"""What a method would save on this device, from a minute of measuring."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from torch import nn

from ..cost.flops import cost
from ..dense.subnet import SubNetwork
from ..errors import ConfigError
from ..graph.trace import trace
from ..machine.timing import now
from ..methods import Method
from ..morph.rehearsal import rehearse
from ..parts import Batch, Prune
from ..run.assembly import Assembly
from ..schedule.stages import Stage
from .channels import MULTIPLES, rounded_up
from .operations import Operations
from .paths import Choose, Span, keeps_momentum, runs_in, spans_if
from .predict import Part, Prediction, predict, step_with_data
from .reasons import Findings, Rounded, reasons
from .steps import Bench, StepCost, Training
from .widths import PrunedCost, Widths, pruned_networks, recommend

Progress = Callable[[int, int], None]
"""Told before every sub-network: how many are measured, and how many there will be."""


@dataclass(frozen=True)
class Supply:
    """The data layer.

    Attributes:
        images_per_second: that it alone delivers at a resolution.
        overlapped: whether other processes make batches while the network trains.
    """

    images_per_second: Callable[[tuple[int, int] | None], float]
    overlapped: bool


@dataclass(frozen=True)
class StagePlan:
    """One stage as it would run. Figures are of a whole step; shares are of the dense network.

    Attributes:
        start, epochs: its first epoch, and how many; those of a search whose weights are thrown away come on top.
        subnetwork: what trains, as `SubNetwork.to_dict`.
        candidates: number of sub-networks among which every step draws one; figures are then their means.
        blocks: how many units of all block stacks are alive, and how many there are.
        width: share of the channels that is alive.
        resolution: height and width of the input in pixels.
        parameters: number of weights.
        flops: of a step, forward and backward.
        flop_share: of dense.
        seconds: of a step: forward, backward, update of the weights and their averages.
        time_share: of dense.
        images_per_second: of the steps alone.
        loader_images_per_second: of the data layer alone; None without data.
        memory: bytes at the peak of a step.
        morph_seconds: time to get to this stage from the one before.
        reasons: why time would not follow the FLOPs.
    """

    start: int
    epochs: int
    subnetwork: dict[str, Any]
    candidates: int
    blocks: tuple[int, int]
    width: float
    resolution: tuple[int, int] | None
    parameters: int
    flops: float
    flop_share: float
    seconds: float
    time_share: float
    images_per_second: float
    loader_images_per_second: float | None
    memory: float
    morph_seconds: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One way the run can go.

    Attributes:
        found: what searches are taken to find; empty where the method does not search.
        stages: in order.
        prediction: of the whole run.
    """

    found: str
    stages: tuple[StagePlan, ...]
    prediction: Prediction


@dataclass(frozen=True)
class Plan:
    """What a method would save on this device.

    Attributes:
        runs: one, or two bounds where the method searches.
        dense: a step of the dense network.
        epochs: length of the run.
        batch_size: images in a measured step; fewer than in a step of the run where `notes` say so.
        trace_seconds: reading the model, and trying the schedule out on fake tensors.
        widths: what pruned networks would cost, and at which multiple their channel counts should stay; None where
            the method does not prune.
        notes: what was left out or done otherwise than asked.
    """

    runs: tuple[Run, ...]
    dense: StagePlan
    epochs: int
    batch_size: int
    trace_seconds: float
    widths: Widths | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def plan(
    model: nn.Module,
    method: Method,
    training: Training,
    *,
    epochs: int,
    steps_per_epoch: int | None = None,
    supply: Supply | None = None,
    seconds: float = 60.0,
    exclude: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
) -> Plan:
    """Measure the steps of every sub-network of a method's schedule and add up a run.

        training = Training(images, labels, lambda model: torch.optim.AdamW(model.parameters()))
        print(plan(model, Prog(), training, epochs=100).runs[0].prediction.speedup)

    Each sub-network takes turns with the dense network. A method that searches is followed twice: as if every search
    found the fastest candidate, and as if it found the largest; the searches' own evaluations are left out. For a
    method that prunes, sub-networks such as pruning leaves are measured too, to say what `multiple_of` it should have.

    Args:
        model: the dense network, on its device; it is changed.
        method: such as `Prog(ratio=0.5)`.
        training: the rest of a step.
        epochs: length of the run.
        steps_per_epoch: where it is known, tracing and morphs count, and the run's time is predicted.
        supply: the data layer, for its time and to see whether it keeps up.
        seconds: to measure for, in all; tracing and morphs come on top. The batch is made smaller where it must be.
        exclude: module paths to leave whole.
        progress: told how far it is.

    Raises:
        ConfigError: the method does not fit the run's length or the model.
        TraceError, MorphError: see `trace` and `morph`.
    """
    if epochs < 1 or not seconds > 0:
        raise ConfigError(
            "out of range", expected="epochs at least 1, seconds above 0", found=f"{epochs} and {seconds}"
        )
    device = training.images.device
    model.train()
    dense = copy.deepcopy(model)
    start = now(device)
    network = trace(model, training.images, exclude=exclude)
    traced = now(device) - start
    assembly = Assembly(method)
    assembly.plan(network, epochs)
    planner = _Planner(assembly, Bench(network, dense, training), epochs, steps_per_epoch, supply)
    rehearsal, notes = planner.measure(seconds, progress)
    if supply is None:
        notes.append("no data given: the time that batches take is left out")
    if steps_per_epoch is None:
        notes.append(f"number of images not known: tracing ({traced + rehearsal:.1f} s) and morphs are left out")
    if assembly.of(Batch) is not None:
        notes.append("the dynamic mini-batch is left out: all steps have the first batch")
    if device.type != "cuda":
        notes.append("memory is that of the tensors of a step; what operations need inside themselves is left out")
    if planner.pruned:
        notes.append("what pruning takes out is known only in training: stages and speedup are without it")
    runs = tuple(planner.run(found, spans, traced, rehearsal) for found, spans in planner.paths.items())
    return Plan(runs, planner.dense, epochs, planner.bench.batch_size, traced + rehearsal, planner.widths, tuple(notes))


class _Planner:
    """One plan in the making.

    Attributes:
        paths: the stages of each way the run can go, by what its searches are taken to find.
        pruned: sub-networks such as pruning leaves, by share and multiple; empty where the method does not prune.
    """

    def __init__(
        self, assembly: Assembly, bench: Bench, epochs: int, steps_per_epoch: int | None, supply: Supply | None
    ):
        self.assembly, self.bench, self.network = assembly, bench, bench.network
        self.epochs, self.steps_per_epoch, self.supply = epochs, steps_per_epoch, supply
        self.paths: dict[str, list[Span]] = {}
        self.pruned = pruned_networks(self.network) if assembly.of(Prune) is not None else {}
        self._supplied: dict[tuple[int, int] | None, float] = {}
        self._training_flops: dict[SubNetwork, int] = {}

    def measure(self, seconds: float, progress: Progress) -> tuple[float, list[str]]:
        """Measure all that `run` needs; returns the seconds of the schedule's rehearsal, and notes."""
        network, bench = self.network, self.bench
        start = now(bench.device)
        rehearse(network, self.assembly.possible, self.assembly.depth_operator)
        rehearsal = now(bench.device) - start
        # Before anything is measured, FLOPs stand in for time: to know how much there is to do.
        smallest = self._spans_if(lambda parts: min(parts, key=self._flops))
        largest = self._spans_if(self._largest)
        todo = {part for span in [*smallest, *largest] for part in self._parts(span.stage)}
        todo |= {network.dense, *self.pruned.values()}
        bench.window = seconds / len(todo)
        smaller = bench.fit_batch(bench.window)

        def measured(part: SubNetwork) -> StepCost:
            if part not in bench.costs:
                progress(len(bench.costs), max(len(todo), len(bench.costs) + 1))
            return bench.cost(part)

        if smallest == largest:
            self.paths = {"": largest}
        else:
            fastest = self._spans_if(lambda parts: min(parts, key=lambda part: measured(part).time))
            self.paths = {"the fastest candidates": fastest, "the largest candidates": largest}
        for spans in self.paths.values():
            before = network.dense
            for stage in (span.stage for span in spans):  # in the run's order, so that its morphs are made on the way
                bench.morph_seconds(before, stage.subnetwork, self.assembly)
                for part in self._parts(stage)[: len(runs_in(stage))]:
                    measured(part)
                before = stage.subnetwork
        for part in [
            network.dense,
            *(p for spans in self.paths.values() for span in spans for p in self._parts(span.stage)),
            *self.pruned.values(),
        ]:
            measured(part)
        progress(len(bench.costs), len(bench.costs))
        notes = []
        if smaller:
            whole = len(bench.training.images)
            notes.append(
                f"measured with {bench.batch_size} images instead of {whole} ({smaller}), and scaled: forward and "
                "backward pass with the images, the update of the weights not"
            )
        if "" not in self.paths:
            notes.append("comparing candidates is left out, the epochs of searches are not")
        return rehearsal, notes

    def run(self, found: str, spans: Sequence[Span], traced: float, rehearsal: float) -> Run:
        """One way the run can go, from what was measured."""
        plans, before = [], self.network.dense
        for number, span in enumerate(spans):
            plans.append(self._stage(span.stage, span.epochs, before, keeps_momentum(self.assembly, spans, number)))
            before = span.stage.subnetwork
        morphs = sum(stage.morph_seconds for stage in plans)
        parts, dense = [self._part(stage) for stage in plans], self._part(self.dense)
        return Run(
            found, tuple(plans), predict(parts, dense, self.steps_per_epoch, traced + rehearsal + morphs, traced)
        )

    @property
    def dense(self) -> StagePlan:
        """Dense training, as one stage."""
        return self._stage(Stage(0, self.network.dense), self.epochs, self.network.dense, False)

    @property
    def widths(self) -> Widths | None:
        """What pruned networks would cost, from what was measured."""
        if not self.pruned:
            return None
        dense, ema = self._cost(self.network.dense), self.bench.training.ema
        costs = {key: self._cost(part) for key, part in self.pruned.items()}
        return recommend(
            [
                PrunedCost(share, multiple, c.flops / dense.flops, self._seconds(c, ema) / self._seconds(dense, ema))
                for (share, multiple), c in costs.items()
            ]
        )

    def _part(self, stage: StagePlan) -> Part:
        seconds = stage.seconds
        if self.supply is not None and stage.loader_images_per_second is not None:
            data = self._images / stage.loader_images_per_second
            seconds = step_with_data(seconds, data, self.supply.overlapped)
        return Part(stage.epochs, seconds, stage.flops)

    def _stage(self, stage: Stage, epochs: int, before: SubNetwork, momentum: bool) -> StagePlan:
        network, bench, subnetwork = self.network, self.bench, stage.subnetwork
        costs = [self._cost(part) for part in runs_in(stage)]
        dense, ema = self._cost(network.dense), bench.training.ema
        seconds = fmean(self._seconds(c, ema + momentum) for c in costs)
        flops, time_share = fmean(c.flops for c in costs), seconds / self._seconds(dense, ema)
        halves = [c.half for c in costs if c.half is not None]
        supplied = None
        if self.supply is not None:
            supply = self.supply
            supplied = 1 / fmean(1 / self._supplied_at(part.resolution, supply) for part in runs_in(stage))
        found = Findings(
            time_share=time_share,
            flop_share=flops / dense.flops,
            half=fmean(halves) if halves else None,
            update=fmean(c.update for c in costs),
            operations=Operations(fmean(c.operations.counted for c in costs), costs[0].operations.others),
            dense_operations=dense.operations,
            images_per_second=self._images / seconds,
            loader=supplied,
            rounded=[
                Rounded(multiple, self._cost(other).time / costs[0].time, self._cost(other).flops / costs[0].flops)
                for multiple, other in self._rounded(stage).items()
            ],
        )
        sizes = {group.name: group.unit for group in network.groups}
        alive = sum(sizes[name] * len(units) for name, units in subnetwork.channels.items())
        return StagePlan(
            start=stage.start,
            epochs=epochs,
            subnetwork=subnetwork.to_dict(),
            candidates=len(stage.candidates),
            blocks=(sum(map(len, subnetwork.blocks.values())), sum(stack.size for stack in network.stacks)),
            width=alive / max(1, sum(group.channels for group in network.groups)) if network.groups else 1.0,
            resolution=subnetwork.resolution,
            parameters=max(c.parameters for c in costs),
            flops=flops,
            flop_share=found.flop_share,
            seconds=seconds,
            time_share=time_share,
            images_per_second=found.images_per_second,
            loader_images_per_second=supplied,
            memory=max(c.kept + c.activations + (ema + momentum) * c.copy for c in costs),
            morph_seconds=bench.morph_seconds(before, subnetwork, self.assembly),
            reasons=reasons(found),
        )

    @property
    def _images(self) -> int:
        """Images in a step of the run."""
        return len(self.bench.training.images)

    def _cost(self, part: SubNetwork) -> StepCost:
        """What a step of the run costs."""
        bench = self.bench
        return bench.cost(part).scaled(self._images / bench.batch_size, bench.cost(self.network.dense))

    def _seconds(self, price: StepCost, averages: int) -> float:
        """Seconds of a step of the run that ends with the update of so many averaged copies."""
        bench = self.bench
        usual = bench.dense_seconds * bench.cost(self.network.dense).growth(self._images / bench.batch_size)
        return usual * price.time * (1 + averages * price.average)

    def _parts(self, stage: Stage) -> list[SubNetwork]:
        """All sub-networks to measure for a stage, those that take its steps first."""
        return [*runs_in(stage), *self._rounded(stage).values()]

    def _rounded(self, stage: Stage) -> dict[int, SubNetwork]:
        """A stage's sub-network with other numbers of channels, by what they are multiples of."""
        others: dict[int, SubNetwork] = {}
        for multiple in MULTIPLES if not stage.candidates else ():
            other = rounded_up(self.network, stage.subnetwork, multiple)
            if other not in (stage.subnetwork, *others.values()):
                others[multiple] = other
        return others

    def _spans_if(self, choose: Choose) -> list[Span]:
        return spans_if(self.assembly, self.epochs, choose)

    def _largest(self, parts: Sequence[SubNetwork]) -> SubNetwork:
        return max(parts, key=self._flops)

    def _flops(self, part: SubNetwork) -> int:
        if part not in self._training_flops:
            self._training_flops[part] = cost(self.network, part).training
        return self._training_flops[part]

    def _supplied_at(self, resolution: tuple[int, int] | None, supply: Supply) -> float:
        if resolution not in self._supplied:
            self._supplied[resolution] = supply.images_per_second(resolution)
        return self._supplied[resolution]

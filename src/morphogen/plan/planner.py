"""What a method would save on this device, from a minute of measuring."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from torch import nn

from ..cost.flops import cost
from ..dense.subnet import SubNetwork
from ..errors import ConfigError, MorphError, MorphogenError
from ..graph.trace import trace
from ..machine.timing import now
from ..methods import Method
from ..morph.rehearsal import rehearse
from ..parts import Batch, Prune, Unfreeze
from ..run.assembly import Assembly
from ..schedule.stages import Stage
from .channels import MULTIPLES, rounded_up
from .operations import Operations
from .paths import Choose, Span, keeps_momentum, runs_in, spans_if
from .predict import Part, Prediction, predict, step_with_data
from .reasons import Findings, Rounded, reasons
from .steps import Bench, StepCost, Training
from .widths import PrunedCost, Widths, pruned_networks, recommend

FASTEST, LARGEST = "the fastest candidates", "the largest candidates"
"""What searches are taken to find."""

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
        time_bounds: between which the share lies in nine of ten cases.
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
    time_bounds: tuple[float, float]
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
        bounds: of its speedup, where all step times are at their upper bound, and at their lower.
    """

    found: str
    stages: tuple[StagePlan, ...]
    prediction: Prediction
    bounds: tuple[float, float]


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
            the method does not prune, or multiples are not measured.
        notes: what was left out or done otherwise than asked.
        prunes: whether the method prunes.
    """

    runs: tuple[Run, ...]
    dense: StagePlan
    epochs: int
    batch_size: int
    trace_seconds: float
    widths: Widths | None
    notes: tuple[str, ...]
    prunes: bool = False

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
    (found,) = plans(
        model,
        {"": method},
        training,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        supply=supply,
        seconds=seconds,
        exclude=exclude,
        progress=progress,
    ).values()
    if isinstance(found, MorphogenError):
        raise found
    return found


def plans(
    model: nn.Module,
    methods: Mapping[str, Method],
    training: Training,
    *,
    epochs: int,
    lengths: Mapping[str, int] | None = None,
    steps_per_epoch: int | None = None,
    supply: Supply | None = None,
    seconds: float = 60.0,
    exclude: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
    multiples: bool = True,
) -> dict[str, Plan | MorphogenError]:
    """As `plan` for several methods, by name: the model is read once, what several methods train is measured once.

    A method's run has `epochs`, or as many as `lengths` says; its savings count against dense training of as many.
    Without `multiples` only what trains is measured, not what other numbers of channels would cost.

    Returns:
        What each would save, or why it does not fit.

    Raises:
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
    bench = Bench(network, dense, training)
    found: dict[str, Plan | MorphogenError] = {}
    planners: dict[str, _Planner] = {}
    for name, method in methods.items():
        assembly, length = Assembly(method), (lengths or {}).get(name, epochs)
        try:
            assembly.plan(network, length)
            planners[name] = _Planner(assembly, bench, length, steps_per_epoch, supply, multiples)
        except (ConfigError, MorphError) as error:
            found[name] = error
    todo = {network.dense}.union(*(planner.todo for planner in planners.values()))
    bench.window = seconds / len(todo)
    smaller = bench.fit_batch(bench.window)

    def measuring(part: SubNetwork) -> None:
        if part not in bench.costs:
            progress(len(bench.costs), max(len(todo), len(bench.costs) + 1))

    measured = {}
    for name, planner in planners.items():
        try:
            planner.measure(measuring)
            measured[name] = planner
        except MorphError as error:
            found[name] = error
    progress(len(bench.costs), len(bench.costs))
    for name, planner in measured.items():
        found[name] = planner.planned(traced, smaller)
    return {name: found[name] for name in methods}


class _Planner:
    """One plan in the making.

    Attributes:
        paths: the stages of each way the run can go, by what its searches are taken to find.
        pruned: sub-networks such as pruning leaves, by share and multiple; empty where the method does not prune, or
            multiples are not measured.
        rehearsal: seconds that trying the schedule out on fake tensors took.
    """

    def __init__(
        self,
        assembly: Assembly,
        bench: Bench,
        epochs: int,
        steps_per_epoch: int | None,
        supply: Supply | None,
        multiples: bool,
    ):
        self.assembly, self.bench, self.network = assembly, bench, bench.network
        self.epochs, self.steps_per_epoch, self.supply = epochs, steps_per_epoch, supply
        self._training_flops: dict[SubNetwork, int] = {}
        start = now(bench.device)
        rehearse(self.network, assembly.possible, assembly.depth_operator)
        self.rehearsal = now(bench.device) - start
        # Before anything is measured, FLOPs stand in for time.
        smallest, largest = self._spans_if(self._smallest), self._spans_if(self._largest)
        self.paths = {"": largest} if smallest == largest else {FASTEST: smallest, LARGEST: largest}
        self.prunes, self.multiples = assembly.of(Prune) is not None, MULTIPLES if multiples else ()
        self.pruned = pruned_networks(self.network) if self.prunes and multiples else {}
        self._supplied: dict[tuple[int, int] | None, float] = {}

    @property
    def todo(self) -> set[SubNetwork]:
        """What there is to measure, as far as it is known."""
        return {part for spans in self.paths.values() for span in spans for part in self._parts(span.stage)} | {
            *self.pruned.values()
        }

    def measure(self, measuring: Callable[[SubNetwork], None]) -> None:
        """Measure all that `run` needs; `measuring` is told of each sub-network before."""
        network, bench = self.network, self.bench

        def measured(part: SubNetwork) -> StepCost:
            measuring(part)
            return bench.cost(part)

        measured(network.dense)
        if len(self.paths) > 1:
            self.paths[FASTEST] = self._spans_if(lambda parts: min(parts, key=lambda part: measured(part).time))
        for spans in self.paths.values():
            before = network.dense
            for stage in (span.stage for span in spans):  # in the run's order, so that its morphs are made on the way
                bench.morph_seconds(before, stage.subnetwork, self.assembly)
                for part in self._parts(stage)[: len(runs_in(stage))]:
                    measured(part)
                before = stage.subnetwork
        for part in self.todo:
            measured(part)

    def planned(self, traced: float, smaller: str | None) -> Plan:
        """The plan, from what was measured; `smaller` says why with a smaller batch."""
        bench, seconds = self.bench, traced + self.rehearsal
        notes = []
        if smaller:
            notes.append(
                f"measured with {bench.batch_size} images instead of {self._images} ({smaller}), and scaled: forward "
                "and backward pass with the images, the update of the weights not"
            )
        if bench.disturbed:
            short, long = (f"{1000 * time:,.1f}" for time in bench.disturbed)
            notes.append(
                f"the machine is busy: the same step takes {short} ms, and {long} ms at other times; close other "
                "programs for a better figure"
            )
        if len(self.paths) > 1:
            notes.append("comparing candidates is left out, the epochs of searches are not")
        if self.supply is None:
            notes.append("no data given: the time that batches take is left out")
        if self.steps_per_epoch is None:
            notes.append(f"number of images not known: tracing ({seconds:.1f} s) and morphs are left out")
        if self.assembly.of(Batch) is not None:
            notes.append("the dynamic mini-batch is left out: all steps have the first batch")
        if self.assembly.of(Unfreeze) is not None:
            notes.append("the backward passes that frozen layers save are left out: all steps train all layers")
        if bench.device.type != "cuda":
            notes.append("memory is that of the tensors of a step; what operations need inside themselves is left out")
        if self.prunes:
            notes.append("what pruning takes out is known only in training: stages and speedup are without it")
        runs = tuple(self.run(found, spans, traced) for found, spans in self.paths.items())
        return Plan(runs, self.dense, self.epochs, bench.batch_size, seconds, self.widths, tuple(notes), self.prunes)

    def run(self, found: str, spans: Sequence[Span], traced: float) -> Run:
        """One way the run can go, from what was measured."""
        plans, before = [], self.network.dense
        for number, span in enumerate(spans):
            plans.append(self._stage(span.stage, span.epochs, before, keeps_momentum(self.assembly, spans, number)))
            before = span.stage.subnetwork
        morphs = sum(stage.morph_seconds for stage in plans)
        overhead = traced + self.rehearsal + morphs

        def predicted(bound: Callable[[StagePlan], float]) -> Prediction:
            parts = [self._part(stage, bound(stage) / stage.time_share) for stage in plans]
            return predict(parts, self._part(self.dense), self.steps_per_epoch, overhead, traced)

        slow, fast = (predicted(lambda stage, end=end: stage.time_bounds[end]).speedup for end in (1, 0))
        return Run(found, tuple(plans), predicted(lambda stage: stage.time_share), (slow, fast))

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

    def _part(self, stage: StagePlan, slower: float = 1.0) -> Part:
        seconds = stage.seconds * slower
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
        shares = [fmean(c.low for c in costs), fmean(c.high for c in costs)]
        low, high = (time_share * share / fmean(c.time for c in costs) for share in shares)
        halves = [c.half for c in costs if c.half is not None]
        supplied = None
        if self.supply is not None:
            supply = self.supply
            supplied = 1 / fmean(1 / self._supplied_at(part.resolution, supply) for part in runs_in(stage))
        found = Findings(
            time_share=time_share,
            least=low,
            flop_share=flops / dense.flops,
            half=fmean(halves) if halves else None,
            update=fmean(c.update for c in costs),
            operations=Operations(fmean(c.operations.counted for c in costs), costs[0].operations.others),
            dense_operations=dense.operations,
            images_per_second=self._images / seconds,
            loader=supplied,
            rounded=[
                Rounded(multiple, price.time / costs[0].time, price.high / costs[0].low, price.flops / costs[0].flops)
                for multiple, other in self._rounded(stage).items()
                for price in [self._cost(other)]
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
            time_bounds=(low, high),
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
        for multiple in self.multiples if not stage.candidates else ():
            other = rounded_up(self.network, stage.subnetwork, multiple)
            if other not in (stage.subnetwork, *others.values()):
                others[multiple] = other
        return others

    def _spans_if(self, choose: Choose) -> list[Span]:
        return spans_if(self.assembly, self.epochs, choose)

    def _smallest(self, parts: Sequence[SubNetwork]) -> SubNetwork:
        return min(parts, key=self._flops)

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

"""The time that runs of a method take, made of step times: for runs that were trained beside others."""

from __future__ import annotations

import copy

from ..dense.network import Network
from ..errors import ConfigError
from ..graph.trace import trace
from ..machine.timing import now
from ..methods import Method
from ..morph.rehearsal import rehearse
from ..parts import Batch, Prune, Resize, Search, Unfreeze
from ..plan.paths import Span, keeps_momentum, spans_if
from ..plan.predict import Part, predict, step_with_data
from ..plan.steps import Bench
from ..run.assembly import Assembly
from .data import Data
from .planning import measured_step, supply_of
from .recipe import Recipe

WINDOW = 2.0
"""Seconds to spend on one sub-network, or three steps of it and of the dense network where they take longer."""


class StepTimes:
    """Each sub-network of a schedule takes turns with the dense network; its step time counts as often as a run takes
    it. Tracing, morphs and the wait for data are added."""

    def __init__(self, recipe: Recipe, data: Data):
        model, training = measured_step(recipe, data)
        self.recipe, self.data, self.device = recipe, data, training.images.device
        model.train()
        dense = copy.deepcopy(model)
        start = now(self.device)
        self.network: Network = trace(model, training.images, exclude=recipe.exclude)
        self._traced = now(self.device) - start
        self.bench = Bench(self.network, dense, training)
        self.bench.window = WINDOW
        self._images_per_second: dict[tuple[tuple[int, int] | None, str], float] = {}

    def spans(self, method: Method, epochs: int) -> tuple[Assembly, list[Span]]:
        """The stages of a run of so many epochs.

        Raises:
            ConfigError: the method does not fit the run, or its steps are not known from its schedule.
        """
        assembly = Assembly(method)
        if any(assembly.of(part) is not None for part in (Batch, Prune, Search, Unfreeze)):
            raise ConfigError(
                "it prunes, searches, freezes or changes its batch, which step times of a schedule do not show",
                where=str(method),
                todo="Compare it with --parallel 1 in another folder, where every run is timed itself",
            )
        assembly.plan(self.network, epochs)
        return assembly, spans_if(assembly, epochs, lambda parts: parts[0])

    def measure(self, method: Method, epochs: int) -> None:
        """Time every sub-network of a run."""
        for span in self.spans(method, epochs)[1]:
            self.bench.cost(span.stage.subnetwork)

    def seconds(self, method: Method, epochs: int) -> float:
        """Training seconds of a run, evaluation left out; when all is measured, so that dense times are the same."""
        assembly, spans = self.spans(method, epochs)
        start = now(self.device)
        rehearse(self.network, assembly.possible, assembly.depth_operator)
        overhead = self._traced + now(self.device) - start
        parts, before = [], self.network.dense
        for number, span in enumerate(spans):
            subnetwork = span.stage.subnetwork
            price = self.bench.cost(subnetwork)
            averages = len(self.recipe.decays) + keeps_momentum(assembly, spans, number)
            step = self.bench.dense_seconds * price.time * (1 + averages * price.average)
            overhead += self.bench.morph_seconds(before, subnetwork, assembly)
            parts.append(Part(span.epochs, self._with_data(step, subnetwork.resolution, assembly), price.flops))
            before = subnetwork
        seconds = predict(parts, parts[-1], self.data.steps, overhead, 0.0).seconds
        assert seconds is not None
        return seconds

    def _with_data(self, step: float, resolution: tuple[int, int] | None, assembly: Assembly) -> float:
        """Seconds of a step and the wait for its images."""
        resizing = (assembly.of(Resize) or Resize()).kind
        supply, key = supply_of(self.data, self.recipe, resizing), (resolution, resizing)
        if key not in self._images_per_second:
            self._images_per_second[key] = supply.images_per_second(resolution)
        return step_with_data(step, self.recipe.batch_size / self._images_per_second[key], supply.overlapped)

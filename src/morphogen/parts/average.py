"""The momentum network: an average of the weights that grown blocks are taken from, and searches measure."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, ClassVar

from torch import nn

from ..dense.subnet import SubNetwork
from ..morph.entry import depth_named
from ..run.part import Part
from .momentum import Momentum, MomentumNetwork, momentum_from, momentum_state


class Average(Part):
    """Keep a momentum network in every search, and in every stage that a later one grows from.

    Attributes:
        momentum: how fast it follows.
        network: the average; None where none is needed.
    """

    name: ClassVar[str] = "average"
    order: ClassVar[int] = 2

    def __init__(self, decay: float | None = None, horizon: float = 0.1):
        """See `Momentum`; raises ConfigError."""
        self.momentum = Momentum(decay, horizon)
        self.network: MomentumNetwork | None = None
        self._counted: int | None = None  # steps so far, in a first epoch of unknown length

    def settings(self) -> tuple[Any, ...]:
        """Decay and horizon."""
        return (self.momentum,)

    @property
    def counts_steps(self) -> bool:
        """Without a decay its horizon is a share of the stage's steps."""
        return self.momentum.decay is None

    @property
    def average(self) -> nn.Module | None:
        """The average."""
        return self.network

    @property
    def copies(self) -> int:
        """One."""
        return 1

    def came_to(self, subnetwork: SubNetwork) -> None:
        """The average is of another size, and goes."""
        self.network = None

    def before_growth(self, target: SubNetwork) -> None:
        """Warn, and begin with the weights, where a loaded state came without the average that new blocks come from."""
        old = self.run.network.current.blocks
        enters = any(set(blocks) - set(old[name]) for name, blocks in target.blocks.items())
        if self.network is None and enters and depth_named(self.run.assembly.depth_operator).momentum:
            warnings.warn(
                "the momentum network did not come with the state that was loaded: new blocks are taken from the "
                "weights; optimizer.state_dict(), or run.state_dict(), has it",
                stacklevel=7,
            )
            with self.run.own_state():
                self.network = MomentumNetwork(self.run.network.model, 0.0)

    def begin_epoch(self, epoch: int) -> None:
        """Begin, go on or stop, as the stages to come have it."""
        run = self.run
        number = max(i for i, stage in enumerate(run.stages) if stage.start <= epoch)
        spans = self._followed(number)
        if not spans:
            self.network = None
            return
        if self.network is None:
            with run.own_state():
                self.network = MomentumNetwork(run.network.model, self.momentum.decay or 0.0)
        lengths = [run.steps_in(subnetwork, run.steps_known) for subnetwork, _ in spans]
        known = [length for length in lengths if length is not None]
        self._counted = None
        if len(known) < len(lengths):
            self._counted = 0
        else:
            steps = sum(count * length for (_, count), length in zip(spans, known, strict=True))
            self.network.decay = self.momentum.decay_over(steps, len(run.stages[number].candidates))

    def _followed(self, number: int) -> list[tuple[SubNetwork, int]]:
        """The sub-networks from a stage on until the average is read, and their epochs; empty where it never is."""
        first, spans = self.run.stages[number], list[tuple[SubNetwork, int]]()
        if first.choose_at is not None:
            return [(first.subnetwork, first.choose_at - first.start)]
        for later, (stage, after) in enumerate(pairwise(self.run.stages[number:]), number + 1):
            spans.append((stage.subnetwork, after.start - stage.start))
            if self._grows(later):
                return spans
        return []

    def _grows(self, number: int) -> bool:
        """Whether a stage takes weights from the average: new blocks, or, in Momentum Growth, all."""
        before, after = (self.run.stages[i].subnetwork.blocks for i in (number - 1, number))
        operator = depth_named(self.run.assembly.depth_operator)
        enters = any(set(after[name]) - set(before[name]) for name in after)
        return operator.momentum and (operator.everything or enters)

    def end_step(self) -> None:
        """Follow the weights; in a first epoch of unknown length, over the horizon's share of the steps so far."""
        if self.network is not None:
            if self._counted is not None:
                self._counted += 1
                self.network.decay = self.momentum.decay_over(self._counted)
            self.network.update_parameters(self.run.network.model)

    def state_dict(self) -> dict[str, Any]:
        """The average, and the steps counted."""
        return {"network": momentum_state(self.network), "counted": self._counted}

    def notes(self) -> dict[str, Any]:
        """The steps alone."""
        return {"network": None, "counted": self._counted}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Its tensors are read when the model has their size; where they are missing, it begins anew."""
        saved = state.get("network")
        if saved is not None and not {"decay", "state", "buffers"} <= saved.keys():
            raise KeyError("decay, state or buffers of the momentum network")

        counted = None if state.get("counted") is None else int(state["counted"])
        if (counted or 0) < 0 or (saved is not None and not 0 <= float(saved["decay"]) < 1):
            raise ValueError("steps, or a decay, out of range")

        def load() -> None:
            self._counted = counted
            self.network = momentum_from(saved, self.run.network.model)

        return load

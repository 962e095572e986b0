"""A stage with candidates at work: which of them a step runs, how long its steps take, and which one goes on."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import ConfigError
from ..machine.private import in_backward
from ..machine.timing import StepClock, now
from ..schedule.stages import Stage
from .candidates import Found, Probe, Resize
from .measure import Losses, measured, search
from .supernet import ElasticSupernet

PROBES = 5
"""How often the losses are measured in a search, as in the authors' code: once in its middle and four times after."""


class Searching:
    """An elastic supernet in training.

    Attributes:
        stage: with its candidates.
        supernet: that runs them.
        before: steps of the stage's epochs before the present one.
        steps: taken in the present epoch.
        probes: the losses measured so far.
        seconds: what measuring them took.
    """

    def __init__(self, network: Network, stage: Stage):
        self.stage, self.before, self.steps = stage, 0, 0
        self.supernet = ElasticSupernet(network, stage.candidates)
        self.probes: list[Losses] = []
        self.seconds = 0.0
        self._device = next(network.model.parameters()).device
        self._clock = StepClock(self._device)
        self._begun = False

    def begin_epoch(self) -> None:
        """An epoch of the stage begins."""
        self.before, self.steps = self.before + self.steps, 0

    def drawn(self, step: int) -> int:
        """The number of the candidate of a step of the present epoch, the same on every rank.

        Each comes once, in another order each time round, whatever the length of an epoch, so that all are trained
        equally often.
        """
        count = len(self.stage.candidates)
        time_round, place = divmod(self.before + step, count)
        return random.Random(f"{self.stage.start}/{time_round}").sample(range(count), count)[place]

    def begin_step(self) -> SubNetwork:
        """Run the next step as its candidate, or this one again (gradients may be accumulated)."""
        if not self._begun and in_backward():
            raise ConfigError(
                "this step's forward pass ran without gradients, as the whole supernet, and runs anew for them",
                where=type(self.supernet.network.model).__name__,
                expected="torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
            )
        number = self.drawn(self.steps)
        self.supernet.run_as(number)
        self._clock.start(number)
        self._begun = True
        return self.stage.candidates[number]

    def check_begun(self) -> None:
        """Raise ConfigError where no step has begun."""
        if not self._begun:
            raise ConfigError(
                "a step of an elastic supernet ends before it has begun",
                expected="images = run.begin_step(images) before every forward pass",
            )

    def end_step(self) -> None:
        """The step is over; until the next one the whole supernet runs. Raises ConfigError where it has not begun."""
        self.check_begun()
        self._clock.stop()
        self._begun = False
        self.supernet.run_as(None)
        self.steps += 1

    def is_due(self, total: int) -> bool:
        """Whether the losses are to be measured now, in a search of so many steps; its last probe is at its end.

        At 4, 5, 6 and 7 eighths of its steps.
        """
        return self.before + self.steps in {-(-total * eighths // 8) for eighths in range(4, 8)} - {total}

    def measure(self, probe: Probe, resize: Resize, average: nn.Module | None) -> None:
        """Measure the losses of all candidates; see `measured`."""
        start = now(self._device)
        self.probes.append(measured(self.supernet, probe, resize, average))
        self.seconds += now(self._device) - start

    def state_dict(self, *, wait: bool = True) -> dict[str, Any]:
        """Where the search is between two steps, as JSON types; without `wait`, without steps still at work."""
        seconds = self._clock.read(wait=wait)
        return {
            "before": self.before,
            "steps": self.steps,
            "probes": [[list(own) for own in probe] for probe in self.probes],
            "measuring": self.seconds,
            "seconds": [seconds.get(number, []) for number in range(len(self.stage.candidates))],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.before, self.steps = int(state["before"]), int(state["steps"])
        self.probes = [[list(map(float, own)) for own in probe] for probe in state["probes"]]
        self.seconds = float(state["measuring"])
        if min(self.before, self.steps, self.seconds) < 0:
            raise ValueError("steps, or seconds, below 0")
        self._clock.seconds = {kind: list(map(float, s)) for kind, s in enumerate(state["seconds"]) if s}

    def decide(self, probe: Probe, resize: Resize, average: nn.Module | None, fitted: bool) -> Found:
        """Measure for the last time, and compare the candidates; see `search`."""
        assert self.stage.choose_at is not None
        within_steps = self.seconds
        self.measure(probe, resize, average)
        epochs = self.stage.choose_at - self.stage.start
        seconds = self._clock.medians()
        found = search(self.supernet, self.probes, seconds, self.stage.choose_at, epochs, self.stage.usual, fitted)
        return replace(found, seconds=self.seconds, within_steps=within_steps)

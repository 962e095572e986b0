"""A growth schedule: which sub-network trains from which epoch on, and how what is new is filled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import CheckpointError, ConfigError
from ..machine.ranks import decided
from ..morph.entry import DepthOperator, depth_named
from ..morph.growth import GrowthOperator, named
from ..run.assembly import distinct
from ..run.part import Part
from ..run.values import as_data
from ..schedule.importance import CHOICES, Order, by_importance, chosen
from ..schedule.revision import revised
from ..schedule.stages import Stage
from .revive import filter_norms, revive

Schedule = Callable[[Network, int], Sequence[Stage]]
"""A network and a number of epochs to the stages of a run, the first at epoch 0, in order."""


class Grow(Part):
    """Follow a schedule that is known before the run.

    Several of them move their own dimensions of one network: what is alive in all of them trains.

    Attributes:
        revisions: (epoch, option) of each stage that was put off, see `revised`.
    """

    name: ClassVar[str] = "grow"
    sharded: ClassVar[bool] = True
    order: ClassVar[int] = 1
    single: ClassVar[bool] = False
    moves: ClassVar[bool] = True

    def __init__(
        self,
        schedule: Schedule,
        *,
        operator: str | GrowthOperator | None = None,
        depth_operator: str | DepthOperator | None = None,
        choose: str = "position",
    ):
        """
        Args:
            schedule: of the run.
            operator: fills new channels, in schedules of the width.
            depth_operator: fills new blocks, in schedules of the depth.
            choose: which channels a smaller network has: `position`, the first of each group, or `importance`, the most
                important ones when the whole network becomes smaller, see `importance`.

        Raises:
            ConfigError: another choice.
            MorphError: an operator that does not exist.
        """
        if choose not in CHOICES:
            raise ConfigError("no such choice of channels", expected=" or ".join(CHOICES), found=repr(choose))
        if operator is not None:
            named(operator)
        if depth_operator is not None:
            depth_named(depth_operator)
        self.operator, self.depth_operator, self._schedule, self._choose = operator, depth_operator, schedule, choose
        self._order: Order | None = None
        self._stages: list[Stage] = []
        self.revisions: list[tuple[int, str]] = []
        self._stage: Stage | None = None
        self._said: tuple[list[Stage], list[list[Any]]] | None = None
        self._says = True
        self._filters: dict[str, torch.Tensor] | None = None

    def plan(self, network: Network, epochs: int) -> None:
        """Make the schedule; raises ConfigError where it does not fit."""
        self._network, self._epochs = network, epochs
        if self._choose == "importance":
            network.order = network.order or by_importance(network)  # which may be small by now, where steps are timed
            self._order = network.order
        self._stages = self._stages_after((), self._order)

    @property
    def stages(self) -> Sequence[Stage]:
        """The schedule."""
        return self._stages

    def before_epoch(self, epoch: int) -> bool:
        """Look the stage of the epoch up; where channels go for the first time, they are chosen by the weights there
        are."""
        network, whole = self.run.network, self.run.network.dense
        begins = self.run.epoch < 0 and network.current == whole
        narrows = network.current.channels == whole.channels != self._at(epoch).subnetwork.channels
        if narrows and self._order is not None:
            self._order = network.order = decided(by_importance(network))
            self._stages = self._stages_after(self.revisions, self._order)
        before, self._stage = self._stage, self._at(epoch)
        self._filters = filter_norms(network) if begins else None
        return self._stage != before

    def begin_epoch(self, epoch: int) -> None:
        """The first network is one that somebody would train: filters that it has emptied begin anew."""
        if self._filters is not None:
            revive(self.run.network, self._filters, [*self.run.followers[0][1:], *self.run.averages])
            self._filters = None

    def wants(self, epoch: int) -> SubNetwork:
        """The stage's sub-network."""
        return self._at(epoch).subnetwork

    def _at(self, epoch: int) -> Stage:
        return max((stage for stage in self._stages if stage.start <= epoch), key=lambda stage: stage.start)

    def postpone(self, epoch: int, option: str) -> None:
        """Put off the stage that begins at an epoch."""
        self._stages = revised(self._stages, epoch, option, self._epochs)
        self.revisions.append((epoch, option))

    def state_dict(self) -> dict[str, Any]:
        """The schedule, what was revised of it, the stage at work, and the order in which channels are kept, where that
        is chosen."""
        order = {} if self._order is None else {"order": {name: list(units) for name, units in self._order.items()}}
        return {
            **order,
            **({"schedule": self._plain(self._stages)} if self._says else {}),
            "revisions": [list(revision) for revision in self.revisions],
            "stage": None if self._stage is None else self._stages.index(self._stage),
        }

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """The same schedule, of the same channels, revised as it was.

        Raises:
            CheckpointError: the settings give another schedule than they did: a default of the method has changed.
        """
        revisions = [(int(epoch), str(option)) for epoch, option in state["revisions"]]
        order = None if self._order is None else _read(state["order"], self._order)
        stages = self._stages_after(revisions, order)
        says, own = "schedule" in state, self._plain(stages)  # states of before 2026-11-27 do not say it
        if says and state["schedule"] != own:
            saved = state["schedule"]
            epoch = min(stage[0] for stage in [*saved, *own] if stage not in saved or stage not in own)
            raise CheckpointError(
                f"the run that was saved follows another schedule, of other sizes from epoch {int(epoch)} on",
                expected=f"stages that begin at epochs {[start for start, _ in own]}",
                found=f"{[start for start, _ in saved]}",
                todo="Where the method is the same, a default of it has changed since: set it as it was, or start over",
            )
        number = state["stage"]
        stage = None if number is None else stages[number]

        def load() -> None:
            self._stages, self.revisions, self._stage, self._order = stages, revisions, stage, order
            self._says = says  # a run that was begun without it goes on so

        return load

    def _plain(self, stages: list[Stage]) -> list[list[Any]]:
        """A schedule as plain data, made once, since some averages ask for a state in every step."""
        if self._said is None or self._said[0] != stages:
            self._said = stages, [[stage.start, as_data(stage.subnetwork)] for stage in stages]
        return self._said[1]

    def _stages_after(self, revisions: Sequence[tuple[int, str]], order: Order | None) -> list[Stage]:
        stages = distinct(self._schedule(self._network, self._epochs))
        if order is not None:
            stages = chosen(stages, order)
        for epoch, option in revisions:
            stages = revised(stages, epoch, option, self._epochs)
        return stages


def _read(saved: Mapping[str, Any], own: Order) -> Order:
    """An order from a state; raises ValueError where it is none of this network's units."""
    order = {str(name): tuple(map(int, units)) for name, units in saved.items()}
    if order.keys() != own.keys() or any(sorted(units) != list(range(len(own[name]))) for name, units in order.items()):
        raise ValueError("an order of channels that does not have each of them once")
    return order

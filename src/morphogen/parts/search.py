"""A schedule that is found while training: an elastic supernet in each stage, one of its candidates goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import nn

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import CheckpointError, ConfigError
from ..morph.entry import DepthOperator, depth_named
from ..morph.optimizer import begin_together
from ..morph.rezero import fold_factors
from ..run.assembly import distinct
from ..run.part import Call
from ..run.run import Run
from ..run.state import Snapshot
from ..schedule.stages import Stage
from ..search.candidates import Found, Probe
from ..search.searching import Searching
from .average import Average
from .choose import Choose

LEAST_SUBSET = 512
"""Images on which a search compares losses where one in 25, as of the paper's ImageNet, is fewer."""

Continued = Callable[[Network, int, Sequence[SubNetwork]], Sequence[Stage]]
"""A network, a number of epochs and what searches found so far, to the stages as far as they are known."""


class Search(Choose):
    """In a stage with candidates every step trains another one; where the stage says so, the best is chosen.

    Attributes:
        recycle: whether the epochs of a search are epochs of the run; otherwise they are thrown away.
        subset: training images to compare candidates on; None is one in 25, and 512 at least.
        fitted: whether candidates are compared by a model of their losses, measured several times with an average of
            the supernet; otherwise by their losses at the end, with the weights as they are.
        searching: the elastic supernet at work, in a stage with candidates.
        searches: the outcome of every search so far.
    """

    name: ClassVar[str] = "search"
    order: ClassVar[int] = 3
    moves: ClassVar[bool] = True
    alone: ClassVar[bool] = True

    def __init__(
        self,
        continued: Continued,
        *,
        everything: Callable[[Network], Sequence[SubNetwork]] | None = None,
        depth_operator: str | DepthOperator | None = None,
        recycle: bool = True,
        subset: int | None = None,
        fitted: bool = True,
    ):
        """
        Args:
            continued: the schedule.
            everything: every sub-network that may be found; by default those of the first stages.
            depth_operator: fills new blocks.
            recycle, subset, fitted: see above.

        Raises:
            MorphError: an operator that does not exist.
        """
        if depth_operator is not None:
            depth_named(depth_operator)
        super().__init__(subset)
        self.depth_operator, self.recycle, self.fitted = depth_operator, recycle, fitted
        self._continued, self._everything = continued, everything
        self._stages: list[Stage] = []
        self._stage: Stage | None = None
        self._kept: Snapshot | None = None

    def plan(self, network: Network, epochs: int) -> None:
        """Make the schedule as far as it is known; raises ConfigError where it does not fit."""
        self._network, self._epochs = network, epochs
        self._stages = list(self.continued(()))

    @property
    def stages(self) -> Sequence[Stage]:
        """The schedule so far."""
        return self._stages

    def continued(self, found: Sequence[SubNetwork]) -> Sequence[Stage]:
        """The schedule after these findings."""
        return distinct(self._continued(self._network, self._epochs, found))

    def possible(self) -> Sequence[SubNetwork] | None:
        """All that may be found."""
        return None if self._everything is None else self._everything(self._network)

    @property
    def counts_steps(self) -> bool:
        """A search needs a step of every candidate."""
        return True

    @property
    def chooses(self) -> bool:
        """Whether anything is ever chosen."""
        return any(stage.choose_at is not None for stage in self._stages) or bool(self.searches)

    def images_of(self, images: int, batch_size: int) -> int:
        """See `Choose`."""
        return self.subset or min(max(LEAST_SUBSET, images // 25), images)

    def begin(self, run: Run) -> None:
        """Raises ConfigError where there is nothing to compare candidates with, or too few steps for them."""
        super().begin(run)
        for stage in self._stages:
            self._check_steps(stage)

    def before_epoch(self, epoch: int) -> bool:
        """Decide a search that is over; open or close the stage."""
        if self._is_over(epoch):
            self._decide()
        stage = max((stage for stage in self._stages if stage.start <= epoch), key=lambda stage: stage.start)
        if stage == self._stage:
            return False
        self._check(stage, epoch)
        self.close()
        if stage.choose_at is not None and not self.recycle:
            fold_factors(*self.run.followers)
            self._kept = Snapshot.of(self.run, without=self)
        self._stage = stage
        return True

    def wants(self, epoch: int) -> SubNetwork:
        """The stage's sub-network, of a search the whole supernet."""
        assert self._stage is not None
        return self._stage.subnetwork

    def begin_epoch(self, epoch: int) -> None:
        """Build the elastic supernet where the stage has just begun."""
        if self.searching is not None:
            self.searching.begin_epoch()
        elif self._stage is not None and self._stage.candidates:
            begin_together(self.run.followers[1])  # a step trains the blocks of one candidate alone
            self.searching = Searching(self.run.network, self._stage)

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Call:
        """Run as the step's candidate, in evaluation as the whole."""
        if self.searching is not None:
            if training:
                self.searching.begin_step()
            else:
                self.searching.supernet.run_as(None)
        return args, kwargs

    def before_step(self) -> None:
        """Raise ConfigError where the step has not begun."""
        if self.searching is not None:
            self.searching.check_begun()

    def end_step(self) -> None:
        """The whole supernet again, measured where it is time to; raises ConfigError where the step has not begun."""
        searching = self.searching
        if searching is None:
            return
        searching.end_step()
        stage, steps = searching.stage, self.run.steps_in(self.run.network.current, self.run.steps_known)
        if stage.choose_at is None or steps is None or not self.fitted:
            return
        if searching.is_due((stage.choose_at - stage.start) * steps):
            with self.run.measuring():
                searching.measure(*self._measured_with)

    def close(self) -> None:
        """An ordinary network."""
        if self.searching is not None:
            self.searching.supernet.close()
            self.searching = None

    def end(self) -> None:
        """No more candidates."""
        self.close()

    @property
    def busy(self) -> bool:
        """In a stage with candidates."""
        return self.searching is not None

    def runs(self, step: int) -> SubNetwork | None:
        """The candidate drawn for a step."""
        return None if self.searching is None else self.searching.stage.candidates[self.searching.drawn(step)]

    def swapped(self) -> AbstractContextManager[None] | None:
        """The candidate's tensors in their places."""
        return None if self.searching is None else self.searching.supernet.swapped()

    def next_epoch(self, epoch: int) -> int:
        """After a search without weight recycling, the stage begins again with what was found."""
        stage = self._stage
        thrown_away = stage is not None and stage.choose_at == epoch + 1 and self._kept is not None
        return stage.start if stage is not None and thrown_away else epoch + 1

    def state_dict(self) -> dict[str, Any]:
        """What was found, the stage, the supernet at work, and what the run goes back to."""
        return {
            **self._notes(wait=True),
            "kept": None if self._kept is None else self._kept.state_dict(),
        }

    def notes(self) -> dict[str, Any]:
        """All but the weights that the run goes back to, and steps whose time is not known yet."""
        return self._notes(wait=False)

    def _notes(self, *, wait: bool) -> dict[str, Any]:
        return {
            "searches": [found.record() for found in self.searches],
            "stage": None if self._stage is None else self._stages.index(self._stage),
            "searching": None if self.searching is None else self.searching.state_dict(wait=wait),
            "kept": None,
        }

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """The same schedule, with what was found."""
        run, searches = self.run, [Found.from_record(record) for record in state["searches"]]
        stages = list(self.continued([found.subnetwork for found in searches]))
        stage = None if state["stage"] is None else stages[state["stage"]]
        kept = None
        if state.get("kept") is not None:
            kept = Snapshot.from_state(run, state["kept"], self)
        elif stage is not None and stage.choose_at is not None and not self.recycle:
            raise CheckpointError(
                "this is the state of a search whose epochs are thrown away, without the weights it goes back to",
                expected="what run.state_dict() gave",
            )
        searching = state["searching"]
        if searching is not None and (stage is None or not stage.candidates):
            raise ValueError("a search in a stage without candidates")

        def load() -> None:
            self.close()
            self._stages, self._stage, self.searches, self._kept = stages, stage, searches, kept
            if searching is not None and stage is not None:
                self.searching = Searching(run.network, stage)
                self.searching.load_state_dict(searching)

        return load

    def _is_over(self, epoch: int) -> bool:
        stage, searching, last = self._stage, self.searching, self.run.epoch
        if stage is None or stage.choose_at is None or searching is None:
            return False
        if self._kept is None:
            return epoch >= stage.choose_at
        if epoch >= stage.choose_at:
            raise ConfigError(
                "without weight recycling the epochs of a search are trained again",
                expected=f"epoch {stage.start}, as run.next_epoch({last}) says",
                found=f"epoch {epoch}",
            )
        return epoch == stage.start and last == stage.choose_at - 1 and searching.steps > 0

    @property
    def _measured_with(self) -> tuple[Probe, Callable[..., torch.Tensor], nn.Module | None]:
        """The loop's loss and data, what makes images smaller, and what is measured in place of the weights."""
        average = self.run.part(Average)
        network = None if average is None or not self.fitted else average.network
        return *self.probe, None if network is None else network.module

    def _decide(self) -> None:
        """Measure the candidates; the stages that follow from the best one are known then.

        It goes on with the supernet's weights; the average of them stays where the next supernet grows from it.
        """
        assert self.searching is not None
        with self.run.measuring():
            self.searches.append(self.searching.decide(*self._measured_with, self.fitted))
        stage, average = self.searching.stage, self.run.part(Average)
        self.close()
        stages = list(self.continued([found.subnetwork for found in self.searches]))
        grows_on = any(each.start == stage.choose_at and each.candidates for each in stages)
        if average is not None and (self._kept is not None or not grows_on):
            average.network = None
        if self._kept is not None:
            self._kept.restore(self.run)
            self._kept = None
        self._stages = stages

    def _check(self, stage: Stage, epoch: int) -> None:
        if stage.choose_at is not None and stage.start != epoch:
            raise ConfigError(
                "a run cannot be joined in the middle of a search",
                expected=f"all epochs from {stage.start} on",
                found=f"epoch {epoch}",
            )
        self._check_steps(stage)

    def _check_steps(self, stage: Stage) -> None:
        if stage.choose_at is not None and self.run.steps_per_epoch is not None:
            steps = (stage.choose_at - stage.start) * self.run.steps_per_epoch
            if steps < len(stage.candidates):
                raise ConfigError(
                    "a search needs a step of every candidate",
                    expected=f"at least {len(stage.candidates)} steps",
                    found=f"{steps}, in {stage.choose_at - stage.start} epochs",
                    todo="Search for more epochs, or with smaller batches",
                )

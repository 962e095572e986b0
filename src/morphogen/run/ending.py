"""When a run ends by itself, and what is said of an end that comes early, late or never."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any
from weakref import finalize

import torch
from torch.utils.hooks import RemovableHandle

from ..dense.subnet import SubNetwork
from ..machine.hook import Hook, take_off
from ..machine.parallel import joins
from ..machine.ranks import ranks
from ..morph.entry import depth_named
from .watch import Watch

if TYPE_CHECKING:
    from .run import Run


class Ending:
    """The end of one run, which nobody may have asked for. See `Run.end`."""

    def __init__(self, run: Run, watch: Watch):
        self._run, self._watch = run, watch
        self._by_itself, self._forgotten = False, list[str]()
        finalize(run, _say, self._forgotten)

    @property
    def has_work(self) -> bool:
        """Whether the end changes the model itself."""
        run = self._run
        return run.assembly.prunes or run.assembly.busy or depth_named(run.assembly.depth_operator).rezero

    def after_step(self) -> None:
        """End the run behind its last step, where it is certain which one that is."""
        run, watch = self._run, self._watch
        if run.hooked and watch.is_last_step(run.steps_now) and not (self.has_work and joins(run.network.model)):
            self._end()
        elif watch.is_last_epoch and not self._forgotten and self.has_work:
            self._forgotten.append(
                f"{run.who}: the run has not ended, so that the model is not what it should become; call run.end() "
                "before it is saved, or give attach(..., steps_per_epoch=...)"
            )

    def if_over(self, *, trains: bool, together: bool = False) -> None:
        """End the run where its training is over by the look of it.

        Args:
            trains: whether the model is in training mode.
            together: whether all ranks are here.
        """
        if self._run.ended or (ranks() > 1 and not together):
            return
        if self._watch.seems_over(self._run.steps_now, trains=trains):
            with torch.inference_mode(False), torch.enable_grad():
                self._end()

    def check_loss(self) -> None:
        """Warn, once, where a loss comes after the end."""
        if self._by_itself and self._run.assembly.prunes:
            self._by_itself = False
            warnings.warn(
                f"the run has ended by itself after {self._watch.steps} steps of its last epoch, and the epoch goes "
                "on: this loss has no penalty; give attach(..., steps_per_epoch=...)",
                stacklevel=3,
            )

    def say_early(self) -> None:
        """Warn that the run ends with a small network."""
        run = self._run
        warnings.warn(
            f"the run ends in epoch {max(0, run.epoch)} of {run.epochs}, and the network is not at its full size "
            f"({compared(run.network.current, run.network.dense)}); run.end(grow=True) brings it there",
            stacklevel=5,
        )

    def check_size(self) -> None:
        """Warn where a state that came after the end has left a small network."""
        network = self._run.network
        if self._run.ended and network.current != network.dense:
            warnings.warn(
                "the state that is loaded is of a smaller network, and the run is over "
                f"({compared(network.current, network.dense)}); run.end(grow=True) brings it to its full size",
                stacklevel=7,
            )

    def forget(self) -> None:
        """The run is at another place, or over."""
        self._by_itself = False
        self._forgotten.clear()

    def _end(self) -> None:
        guessed = not self._watch.knows_length(self._run.steps_now)
        self._run.end()
        self._by_itself = True
        if guessed and self.has_work:
            self._look_for_more()

    def _look_for_more(self) -> None:
        """Warn, once, where a step follows the end of a run whose only epoch has a length that nobody has told."""
        handles = list[RemovableHandle]()

        def another(*_: Any) -> None:
            take_off(handles)
            if self._by_itself and not self._run.assembly.prunes:  # a pruned run tells it of the next loss
                warnings.warn(
                    f"{self._run.who}: the run has ended by itself when its model was first evaluated, after "
                    f"{self._watch.steps} steps of its only epoch, and the epoch continues; give "
                    "attach(..., steps_per_epoch=...)",
                    stacklevel=3,
                )

        hook = Hook(another, self)
        handles += [optimizer.register_step_pre_hook(hook) for optimizer in self._run.followers[1]]


def _say(messages: list[str]) -> None:
    """The last resort, when a run is forgotten or the program over."""
    for message in messages:
        warnings.warn(message, stacklevel=2)


def compared(target: SubNetwork, dense: SubNetwork) -> str:
    """How much of the dense network a sub-network has, in a few words."""
    parts = []
    for what, mine, all_of_it in (
        ("channels", target.channels, dense.channels),
        ("blocks", target.blocks, dense.blocks),
    ):
        have, there = (sum(map(len, each.values())) for each in (mine, all_of_it))
        if have != there:
            parts.append(f"{have} of {there} {what}")
    if target.resolution != dense.resolution and target.resolution and dense.resolution:
        sizes = (" x ".join(map(str, size)) for size in (target.resolution, dense.resolution))
        parts.append(" of ".join(sizes) + " pixels")
    return ", ".join(parts)

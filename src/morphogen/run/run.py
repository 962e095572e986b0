"""A method at work on a network, inside somebody's own training loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from ..cost.memory import StepMemory
from ..dense.network import Network
from ..dense.subnet import SubNetwork, contains, intersection
from ..errors import CheckpointError, ConfigError
from ..morph.averages import averaged, several_averages
from ..morph.away import begin_to_keep
from ..morph.commit import Receipt
from ..morph.drop_path import lay_out_drop_path
from ..morph.rezero import fold_factors, has_factor
from ..schedule.revision import Option
from ..schedule.stages import Regularisation, Stage
from .assembly import Assembly, Policy
from .ending import Ending, compared
from .followers import Followers
from .hooks import Hooks, check_free
from .part import Part
from .state import restore, state_of
from .steps import Steps
from .watch import Watch, number_of

if TYPE_CHECKING:
    from ..search.candidates import Probe

P = TypeVar("P", bound=Part)


class Run:
    """A method at work on a model; made by `attach`.

    Attributes:
        network: the traced model; `network.current` is what trains now.
        method: whose parts are at work.
        assembly: the parts; `run.part(Prune)` is one of them.
        epochs: length of the run.
        epoch: the one at work, -1 before the first.
        memory: of a step of any sub-network, modelled.
        steps_per_epoch: optimizer steps in an epoch, as `attach` was told.
        first_batch: images in a step of the dense network, as `attach` was told.
        probe: what candidates of a search are measured with.
        history: (epoch, sub-network) of each stage so far; it replays the run.
        hooked: whether hooks do what a step needs, so that the loop does not have to.
        following: what changes size with the network.
        ending, steps: when it ends by itself, and what its parts do in a step.
    """

    def __init__(
        self,
        network: Network,
        method: Policy,
        assembly: Assembly,
        optimizers: Sequence[Optimizer],
        ema: Sequence[nn.Module],
        *,
        epochs: int,
        memory: StepMemory,
        steps_per_epoch: int | None,
        first_batch: int | None,
        probe: Probe | None,
        hooked: bool,
    ):
        """
        Raises:
            ConfigError: a part lacks something.
        """
        self.network, self.method, self.assembly, self.epochs = network, method, assembly, epochs
        self.memory, self.steps_per_epoch, self.first_batch, self.probe = memory, steps_per_epoch, first_batch, probe
        if assembly.restores:
            begin_to_keep(network)
        self.history: list[tuple[int, SubNetwork]] = []
        self.hooked, self.is_measuring, self.has_own_state, self.ended = hooked, False, False, False
        self.following = Followers(network, assembly, optimizers, ema)
        self.following.check_wrappers()
        self._watch = Watch(network.model, optimizers, epochs, hooked)
        self._receipt: Receipt | None = None
        self.ending = Ending(self, self._watch)
        self.steps = Steps(assembly, self._watch, self.ending)
        for part in assembly:
            part.begin(self)
        self._hooks = Hooks(self, steps=hooked)

    # What the loop calls.

    def begin_epoch(self, epoch: int) -> Receipt | None:
        """Call before the first batch of every epoch, counted from 0; morphs where the schedule says.

        What the parts decide comes first (the candidates of a search that is over are measured, sparse channels are
        found), then one morph to what all of them want. A DistributedDataParallel around the model is brought up to
        date, whoever holds it. Between ranks, all of which call it, they compare where they are and what they hold.

        Returns:
            What the morph did; None where the network stays as it is.

        Raises:
            ConfigError: no epoch, or one out of order (see `next_epoch`); the epoch before lacked a call that it needs.
            MorphError: see `morph`.
            TrainingError: see `search` and `wrap_anew`; ranks are at different epochs, or hold different weights.
        """
        if self.ended and number_of(epoch) < self.epochs:
            raise ConfigError("the run is over", expected="a new one by morphogen.attach", found=f"epoch {epoch}")
        self._hooks.settle()
        self.following.change(partial(self._begin, epoch), self)
        return self._receipt

    def penalised(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss with what the method adds to it: the group lasso, where it prunes. The one call of a step that
        hooks cannot make, since they never see the loss.

        Args:
            loss: a scalar, of the task alone. Scale what is returned (1 / k for k accumulated gradients, a GradScaler's
                scale), not this.
        """
        self.ending.check_loss()
        for part in () if self.ended else self.assembly:
            loss = part.on_loss(loss)
        return loss

    def end(self, *, grow: bool = False) -> Receipt | None:
        """Call when training is over: what is sparse, and what a method keeps in the model while it trains, goes, and
        so do the hooks.

        The run does it by itself after its last step, where `attach` was told how many there are. Else it does when the
        model is evaluated, its state is read or another run is attached, after as many steps of the last epoch as the
        one before had (in evaluation, nine tenths of them: a GradScaler may skip some). Between ranks, one of which
        may evaluate alone, it counts the steps of the epoch before.

        Args:
            grow: bring a network that is not at its full size there, where training stopped early.

        Returns:
            What the last morph did; None where there was none.

        Raises:
            ConfigError: it is over, and another run is attached to the model.
        """
        if self.ended and not grow:
            return self._receipt
        if self.ended:
            check_free(self.network.model)
        self._hooks.settle()
        self.following.change(partial(self._end, grow), self)
        return self._receipt

    def _end(self, grow: bool) -> None:
        self._watch.check_rates()
        self.close()
        folds = any(map(has_factor, self.network.model.modules()))
        fold_factors(*self.followers)
        for part in self.assembly:
            part.end()
        self._receipt, final = None, self._intersection([part.final() for part in self.assembly])
        target = final if grow else intersection([self.network.current, final])
        if target != self.network.current:
            self._morph(target, grows=grow)
            self.history.append((self.epochs, target))
        self.ended = True
        self.ending.forget()
        self._hooks.stop(keep_loading=target != final)
        if target != final:
            self.ending.say_early()
        if folds or self._receipt is not None:  # otherwise one rank may end the run alone, to save it
            self.following.wrap_anew()

    def follow(self, ema: Any) -> None:
        """Change an averaged copy along from here on, which is at the network's present size.

        PyTorch's and timm's averages (all that have `update` or `update_parameters`) are found without, where they are
        deep copies of the model made after `attach`.
        """
        for average in several_averages(ema, self.network.model):
            self.following.ema.append(average)
            self._hooks.put_on(averaged(average, self.network.model))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run goes on from, between two steps: the sub-network, weights, optimizers, averages, and
        the state of each part.

        Dictionaries, lists, numbers, strings and tensors alone, so that `torch.load(..., weights_only=True)` reads it;
        the tensors are the run's own, not copies. The random numbers and the position in the data are the loop's.
        Where the model is sharded, they are whole, and all ranks call this.
        """
        self._hooks.settle()
        self._follow_new_averages()
        with self.own_state(), self.following.gathered():
            return state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the model, its optimizers and averaged copies take its size and its values.

        The run was attached with the same model (its weights may be others), method, length and optimizers. After a
        state that was saved at the end of an epoch go on with `begin_epoch` of the next one (see `next_epoch`); after
        one saved within an epoch with the next step.

        Raises:
            CheckpointError: the state is damaged, or of another run; nothing is changed then.
        """
        self._follow_new_averages()
        self.following.change(partial(self._load, state), self)

    def _load(self, state: Mapping[str, Any]) -> None:
        with self.following.gathered():
            restore(self, state)
        self.ending.forget()
        if self.ended:
            self._hooks.stop(keep_loading=False)
        else:
            self._hooks.start()
        self.following.wrap_anew()

    @property
    def batch_size(self) -> int | None:
        """Images in a step of this epoch, on each rank; None where `attach` was not told of any."""
        return next((part.batch_size for part in self.assembly if part.batch_size is not None), self.first_batch)

    @property
    def lr_scale(self) -> float:
        """What the learning rate of this epoch's steps is to be multiplied by, because of their batch."""
        return prod(part.lr_scale for part in self.assembly)

    def next_epoch(self, epoch: int) -> int:
        """The epoch to train after this one.

        It is the next one, except after a search without weight recycling: the search's epochs are thrown away, and
        the stage begins again with what was found.
        """
        return min((part.next_epoch(epoch) for part in self.assembly), default=epoch + 1)

    # What hooks do, or, with hooks=False, the loop.

    def begin_step(self, images: torch.Tensor | None = None, *targets: torch.Tensor) -> Any:
        """Before every forward pass, where `attach` put on no hooks.

        Args:
            images: (N, C, H, W), of any size.
            targets: maps that go with them, (N, H, W) or (N, C, H, W), of any size.

        Returns:
            The images at the resolution that this step runs at; with targets, a tuple of the images and of the targets
            at that size, by nearest neighbour. Where hooks do it, all as they are: the model is given smaller images,
            and its maps are brought back to the size of these.
        """
        if not self.hooked and not self.ended:
            images = self.steps.resized(images)
        return (images, *self.steps.targets(targets, images)) if targets else images

    def end_step(self) -> None:
        """After every optimizer step, where `attach` put on no hooks.

        Raises:
            ConfigError: in a search, without `begin_step`; a step whose loss lacks its penalty.
        """
        if not self.hooked and not self.ended:
            self.steps.before()
            self.steps.after(self.steps_now)

    def swapped(self) -> AbstractContextManager[None]:
        """Put this around a call of another method of the model than its `forward` (`forward_features`, say)."""
        return next((own for part in self.assembly if (own := part.swapped()) is not None), nullcontext())

    # What parts, the trainer and reports ask.

    @property
    def epoch(self) -> int:
        """The epoch at work, -1 before the first."""
        return self._watch.epoch

    @property
    def who(self) -> str:
        """The method's name, for messages."""
        return str(self.method)

    def __deepcopy__(self, memo: Any) -> Run:
        """Itself: a copy of a module that holds the run, such as an average of it, is not what the run trains."""
        return self

    def __reduce__(self) -> Any:
        raise CheckpointError(
            "a run is not pickled, since what it holds of the graph is made anew by attach",
            expected="run.state_dict() in the checkpoint, and run.load_state_dict after attach",
        )

    def __repr__(self) -> str:
        """In one line, what trains and how much of it can change."""
        return f"{self.who}, {self.network!r}"

    @property
    def stages(self) -> list[Stage]:
        """The schedule of this run, as far as it is known."""
        return self.assembly.stages

    @property
    def possible(self) -> list[SubNetwork]:
        """Every sub-network that may come to train, but for what pruning leaves."""
        return self.assembly.possible

    def part(self, kind: type[P]) -> P | None:
        """The part of a kind, None where the method has none."""
        return self.assembly.of(kind)

    def runs(self, step: int) -> SubNetwork:
        """The sub-network that a step of the present epoch runs, on every rank the same."""
        return next((own for part in self.assembly if (own := part.runs(step)) is not None), self.network.current)

    @property
    def running(self) -> SubNetwork:
        """The sub-network that the present step runs."""
        return self.runs(self._watch.steps)

    def regularisation(self, epoch: int) -> Regularisation:
        """How strong the recipe's regularisation is in an epoch."""
        return self.assembly.regularisation(epoch)

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
        if epoch <= self.epoch:
            raise ConfigError("the epoch is past", expected=f"one above {self.epoch}", found=f"{epoch}")
        self.assembly.postpone(epoch, option)

    def detach(self) -> None:
        """Take the hooks off a run that does not go on, and leave the model to another one."""
        if not self.ended:
            self.close()
            self.ending.forget()
            self._hooks.stop(keep_loading=False)

    def close(self) -> None:
        """Make the network an ordinary one at its present size; where training stops in the middle of a search."""
        for part in self.assembly:
            part.close()

    @property
    def steps_known(self) -> int | None:
        """Optimizer steps in an epoch: as `attach` was told, or as the last whole one had."""
        return self.steps_per_epoch or self._watch.usual or None

    @property
    def receipt(self) -> Receipt | None:
        """What the last `begin_epoch` has changed; None where it was nothing."""
        return self._receipt

    @property
    def at_work(self) -> bool:
        """Whether it has neither ended nor been detached."""
        return self._hooks.on

    @property
    def steps_now(self) -> int | None:
        """Optimizer steps of the present epoch, as far as `attach` was told."""
        return self.steps_in(self.network.current, self.steps_per_epoch)

    def steps_in(self, subnetwork: SubNetwork, steps: int | None) -> int | None:
        """Optimizer steps of an epoch of a sub-network, None where they are not known."""
        return None if steps is None else self.assembly.steps_in(subnetwork, steps)

    @property
    def followers(self) -> tuple[list[nn.Module], list[Optimizer]]:
        """The model and its averages, and its optimizers."""
        return self.following.trees, self.following.optimizers

    @property
    def averages(self) -> list[nn.Module]:
        """The averages that parts keep."""
        return self.following.averages

    def measuring(self) -> AbstractContextManager[None]:
        """Forward passes in here are no steps, and their images have the right size already."""
        return self._while("is_measuring")

    def own_state(self) -> AbstractContextManager[None]:
        """States that come and go in here are the run's own."""
        return self._while("has_own_state")

    @contextmanager
    def _while(self, flag: str) -> Iterator[None]:
        before = getattr(self, flag)
        setattr(self, flag, True)
        try:
            yield
        finally:
            setattr(self, flag, before)

    def go_to(self, target: SubNetwork) -> None:
        """Morph at once, on the way to a state whose values come next."""
        if target != self.network.current:
            self._morph(target, grows=True)

    def state_was_loaded(self, progress: Mapping[str, float] | None = None) -> None:
        """A state has come: the next epoch may be any; with `progress` the run is where that says."""
        if progress is not None:
            self._hooks.forget()
        self._watch.state_was_loaded(progress)

    def has_another_size(self) -> None:
        """A state has changed the network's size."""
        self.following.wrap_anew()
        self.ending.check_size()

    def progress(self) -> dict[str, Any]:
        """Where the run is, as JSON types."""
        return {**self._watch.progress(), "ended": self.ended}

    def _begin(self, epoch: int) -> None:
        counts = any(part.counts_steps for part in self.assembly)
        with self.following.as_one(self, epoch):
            epoch = self._watch.checked(epoch, self.next_epoch(self.epoch), self.steps_now, matters=counts)
        if self.ended:  # a script's epochs of its own behind the run's
            self.ending.forget()
            self._watch.begun(epoch)
            return
        with self.following.gathered() if self.epoch < 0 else nullcontext():  # parts look at the dense network
            self._become(epoch)

    def _become(self, epoch: int) -> None:
        first, busy, frozen, self._receipt = self.epoch < 0, self.assembly.busy, self.network.frozen, None
        entered = [part.before_epoch(epoch) for part in self.assembly]
        scale, regularisation = self.network.drop_path_scale, self.regularisation(epoch)
        self.network.drop_path_scale = regularisation.drop_path
        target = self._intersection([part.wants(epoch) for part in self.assembly])
        if target != self.network.current:
            kept = intersection([self.network.current, target])
            if first and epoch > 0 and replace(kept, resolution=None) != replace(self.network.current, resolution=None):
                warnings.warn(
                    f"the run is joined at epoch {epoch}, whose stage is smaller than the model "
                    f"({compared(target, self.network.dense)}): what it has learnt beyond that is dropped",
                    stacklevel=5,
                )
            self._morph(target, grows=any(entered) or not contains(self.network.current, target))
        if any(entered) or self._receipt is not None or not self.history:
            self.history.append((epoch, target))
        self._watch.epoch = epoch
        for part in self.assembly:
            part.begin_epoch(epoch)
        if regularisation.drop_path != scale:
            lay_out_drop_path(self.network)
        self._watch.begun(epoch, grew=self._receipt is not None and _grows(self._receipt))
        if self._receipt is not None or busy or self.assembly.busy or self.network.frozen != frozen:
            self.following.wrap_anew()

    def begin_anew(self) -> None:
        """The next epoch may be any."""
        self._watch.state_was_loaded()

    def _intersection(self, wanted: Sequence[SubNetwork]) -> SubNetwork:
        return intersection([self.network.dense, *wanted])

    def _morph(self, target: SubNetwork, *, grows: bool) -> None:
        self._follow_new_averages()
        self._receipt = self.following.morph(target, grows=grows)

    def _follow_new_averages(self) -> None:
        for average in self._hooks.averages():
            self.follow(average)


def _grows(receipt: Receipt) -> bool:
    """Whether channels or blocks have come in."""
    return not contains(replace(receipt.before, resolution=receipt.after.resolution), receipt.after)

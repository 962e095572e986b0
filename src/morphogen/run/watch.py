"""What a run notices of the loop around it: epochs out of order, steps that never come, weights that others move."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError
from ..machine.ranks import ranks
from ..machine.sharded import local

PROBES = 3
"""Parameters whose values are looked at, the smallest there are."""


class Watch:
    """The epochs and steps of one run.

    Attributes:
        epoch: the one at work, -1 before the first.
        steps: taken in it so far.
        usual: steps of the last whole epoch, 0 before there is one.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], epochs: int, hooked: bool):
        self._model, self._epochs, self._hooked = model, epochs, hooked
        self._rates = Rates(optimizers)
        self.epoch, self.steps, self.usual = -1, 0, 0
        self._anew, self._joins, self._wrong, self._loaded, self._read = True, False, False, 0, -1
        self._probes: list[tuple[torch.Tensor, torch.Tensor]] = []

    def state_was_loaded(self, progress: Mapping[str, float] | None = None) -> None:
        """The next epoch may be any; with `progress` the run is where that says."""
        self._anew = self._joins = True
        if progress is not None:
            self.epoch, self.steps, self.usual = (int(progress[key]) for key in ("epoch", "steps", "usual"))
            self._wrong, self._rates.peak = bool(progress["wrong"]), progress["peak"]
        self._loaded = self.steps

    def progress(self) -> dict[str, float]:
        """Where the run is, as JSON types."""
        where = {"epoch": self.epoch, "steps": self.steps, "usual": self.usual, "wrong": int(self._wrong)}
        return where | {"peak": self._rates.peak}

    def checked(self, epoch: Any, expected: int, told: int | None, *, matters: bool) -> int:
        """The number of an epoch that begins.

        Args:
            epoch: as the loop gives it.
            expected: the one that follows the present one.
            told: steps of the present epoch, as far as `attach` was told.
            matters: whether a part reckons with them.

        Raises:
            ConfigError: no whole number from 0; an epoch again, or an earlier one, without a state that was loaded;
                the epoch before was trained by an optimizer that the run does not know.
        """
        number = number_of(epoch)
        if number == 1 and self.epoch < 0 and not self._joins:
            warnings.warn(
                "the run begins with epoch 1, and epochs are counted from 0; in a loop that counts from 1 call "
                "run.begin_epoch(epoch - 1)",
                stacklevel=5,
            )
        self.check_rates()
        if not self._anew:
            self._check_training()
            self._check_order(number, expected)
        # A state may be of the middle of an epoch, whose rest is left out.
        all_of_it = not self._anew or self.steps > self._loaded or self.steps >= self.usual
        if number == expected and self.steps and all_of_it:
            self._wrong = told != self.steps
            self.usual = self.steps
            if matters:
                self._check_steps(told)
        if number >= self._epochs > self.epoch:
            warnings.warn(
                f"epoch {number} is beyond the run's {self._epochs} epochs, counted from 0; the network stays as it is "
                "(attach(..., epochs=...) sets the length)",
                stacklevel=5,
            )
        return number

    def check_rates(self) -> None:
        """Warn, once, where the epoch that is over grew the network at a low learning rate."""
        if self.steps:
            self._rates.check(self.epoch)

    def begun(self, epoch: int, *, grew: bool = False) -> None:
        """An epoch begins; `grew` where it brings channels or blocks."""
        self._rates.begin_epoch(grew)
        self.epoch, self.steps, self._anew, self._loaded, self._read = epoch, 0, False, 0, -1
        small = sorted((p for p in self._model.parameters() if p.requires_grad and p.numel()), key=torch.numel)
        self._probes = [(p, local(p.detach()).clone()) for p in small[:PROBES]]

    def begins_step(self) -> None:
        """Raise ConfigError where no epoch has begun."""
        if self.epoch < 0:
            raise ConfigError(
                "a step is taken, and no epoch has begun",
                expected="run.begin_epoch(epoch) before the first batch of every epoch",
            )

    def took_step(self, told: int | None) -> None:
        """A step is over; warns, once, where an epoch has more of them than it should."""
        self.steps += 1
        self._rates.took_step()
        expected = self._expected(told)
        if expected and self.steps == expected + max(2, expected // 5) and self.epoch < self._epochs - 1:
            warnings.warn(
                f"epoch {self.epoch} has more than its {expected} steps; call run.begin_epoch(epoch) before the first "
                "batch of every epoch",
                stacklevel=4,
            )

    def is_last_step(self, told: int | None) -> bool:
        """Whether the run's last step is over, as `attach` was told; between ranks, which cannot wait to see, as the
        epoch before says too."""
        certain = ranks() > 1 or (told is not None and not self._wrong)
        return certain and self.is_last_epoch and self.steps == self._expected(told)

    def seems_over(self, told: int | None, *, trains: bool) -> bool:
        """Whether the run's training is over by the look of it, when its model is evaluated or its state is read.

        Of those that are expected a tenth may be missing, as a GradScaler leaves steps out. The state of a model in
        training mode (`trains`) may be read after every step, by an average that follows it.
        """
        expected, read = self._expected(told), self._read
        if trains:
            self._read = self.steps
            if not expected or read == self.steps - 1:
                return False
        least = expected if trains else expected - expected // 10
        return self.is_last_epoch and self.steps >= max(1, least)

    @property
    def is_last_epoch(self) -> bool:
        """Whether the last epoch is at work, or over."""
        return self.epoch == self._epochs - 1

    def knows_length(self, told: int | None) -> bool:
        """Whether `attach` or an epoch before has said how many steps an epoch has."""
        return self._expected(told) > 0

    def _expected(self, told: int | None) -> int:
        return self.usual if told is None or self._wrong else told

    def _check_order(self, number: int, expected: int) -> None:
        if number == expected or (number == self.epoch and not self.steps):
            return
        if number <= self.epoch:
            raise ConfigError(
                f"epoch {number} begins again" if number == self.epoch else "epochs go back",
                expected=f"run.begin_epoch({expected}), once for each epoch",
                found=f"run.begin_epoch({number}) after epoch {self.epoch}, which took {self.steps} steps",
                todo="To go back, load a state first: run.load_state_dict(...) or model.load_state_dict(...)",
            )
        warnings.warn(
            f"epoch {number} begins after epoch {self.epoch}; call run.begin_epoch(epoch) for each epoch between, "
            "or its stages are left out",
            stacklevel=6,
        )

    def _check_training(self) -> None:
        """Somebody else's optimizer: what enters would be in none."""
        pairs = [(local(parameter), was) for parameter, was in self._probes]
        if self.steps or not any(now.shape == was.shape and not torch.equal(now, was) for now, was in pairs):
            return
        where = f"epoch {self.epoch}"
        found = "weights changed, and no optimizer given to attach took a step"
        if not any(parameter.grad is not None for parameter in self._model.parameters()):
            warnings.warn(f"{where}: {found}", stacklevel=6)
            return
        ours = "attach(model, optimizer, ...) with the optimizer that the loop uses, after it is made"
        raise ConfigError(
            "the model was trained and the run did not see it",
            where=where,
            expected=ours if self._hooked else f"run.end_step() after every optimizer step, and {ours}",
            found=found,
        )

    def _check_steps(self, told: int | None) -> None:
        if told is not None and abs(self.steps - told) > max(1, told // 10):
            warnings.warn(
                f"epoch {self.epoch} had {self.steps} steps, and the run expects {told}; give "
                f"attach(..., steps_per_epoch={self.steps})",
                stacklevel=6,
            )


class Rates:
    """The learning rates of a run's optimizers, the highest of their groups.

    Attributes:
        peak: the highest so far.
    """

    def __init__(self, optimizers: Sequence[Optimizer]):
        self._optimizers, self.peak, self._told = optimizers, 0.0, False
        self._before, self._epoch, self._waits = 0.0, 0.0, True

    def begin_epoch(self, grew: bool) -> None:
        """Begin to look for the epoch's own; `grew` where the network has just grown."""
        self._before, self._epoch = self.peak if grew else 0.0, 0.0
        self._waits = True

    def took_step(self) -> None:
        """Look at the rates; at one that a GPU holds, which has to be waited for, in an epoch's first step alone."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        rates = [group["lr"] for group in groups if "lr" in group]  # A2Grad has none
        known = [rate for rate in rates if self._waits or not (isinstance(rate, torch.Tensor) and rate.is_cuda)]
        highest, self._waits = max(map(float, known), default=0.0), False
        self._epoch, self.peak = max(self._epoch, highest), max(self.peak, highest)

    def check(self, epoch: int) -> None:
        """Warn, once, where the network grew in an epoch whose rates were less than a tenth of the highest before."""
        if self._told or self._epoch >= self._before / 10:
            return
        self._told = True
        warnings.warn(
            f"the network grew in epoch {epoch}, at a learning rate of {self._epoch:.2g} at most, where it has been "
            f"{self._before:.2g}: what is new hardly trains; grow earlier, or take a schedule of the learning rate "
            "that stays flat until the last growth",
            stacklevel=7,
        )


def number_of(epoch: Any) -> int:
    """The number of an epoch; raises ConfigError where it is none."""
    try:
        number = -1 if isinstance(epoch, bool) else operator.index(epoch)
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigError("epoch out of range", expected="a whole number, counted from 0", found=repr(epoch))
    return number

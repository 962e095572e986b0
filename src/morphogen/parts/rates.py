"""A learning rate of its own for what is new: entries that entered late replay the schedule from its beginning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..dense.subnet import SubNetwork
from ..machine.hook import Hook, take_off
from ..morph.commit import Receipt
from ..run.part import Part
from ..run.run import Run

POINTS = 1000
"""Points of a run at which the learning rate is remembered."""


class Rates(Part):
    """Scale the steps of young entries of the weights, whatever the optimizer and the scheduler.

    An entry born at share u0 of the run learns at share u as if the schedule had begun at its birth and ended with the
    run: at the rate that there was at share v = (u - u0) / (1 - u0), which is past, so no scheduler has to be asked.
    Its step is multiplied by rate(v) / rate(u), not below 1 and at most `most`: what the optimizer has made of the
    gradient, the momentum and the weight decay, so that it is the same for SGD and for Adam. Each parameter group of
    each optimizer has a schedule of its own.

    Relatives: learning-rate adaptation by the age of weights (Yuan, Savarese, Maire, NeurIPS 2023, section 3.3).
    """

    name: ClassVar[str] = "rates"
    order: ClassVar[int] = 7

    def __init__(self, most: float):
        """`most` is the largest factor of a step."""
        self.most = most
        self._births: list[float] = []
        self._young: dict[str, torch.Tensor] = {}
        self._rates: dict[str, list[float]] = {}  # by the numbers of the optimizer and of the group
        self._step, self._handles = 0, list[RemovableHandle]()
        self._before: dict[nn.Parameter, tuple[torch.Tensor, list[float]]] = {}

    def settings(self) -> tuple[Any, ...]:
        """The largest factor."""
        return (self.most,)

    @property
    def counts_steps(self) -> bool:
        """Progress within an epoch is by steps."""
        return True

    def begin(self, run: Run) -> None:
        """Look at every step of the run's optimizers."""
        super().begin(run)
        self._look()

    def _look(self) -> None:
        for number, optimizer in enumerate(self.run.followers[1]) if not self._handles else ():
            before, after = Hook(partial(self._before_update, number), self), Hook(self._after_update, self)
            self._handles += [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def begin_epoch(self, epoch: int) -> None:
        """What the morph has added is born."""
        self._step = 0
        if epoch > 0 and not self._rates:
            warnings.warn(
                f"the run is joined in epoch {epoch}, and the learning rates before are not known; AdaptRates takes "
                "them for those of the first step, so that what is new is scaled by less than it would be",
                stacklevel=5,
            )
        if self.run.receipt is not None and epoch > 0:
            self._follow(self.run.receipt, epoch / self.run.epochs)

    def _follow(self, receipt: Receipt, birth: float) -> None:
        born = len(self._births) + 1  # 0 is what was there from the beginning
        parameters = dict(self.run.network.model.named_parameters())
        young = {name: ages for name, ages in self._young.items() if name in parameters}
        for name, change in receipt.changes.items():
            if name in parameters and (change.map.grows or name in young):
                old = torch.zeros(change.map.old_shape, dtype=torch.uint8, device=change.tensor.device)
                ages = change.map.carry(young.get(name, old), born)
                young[name] = change.map.regrid(ages, smooth=False) if change.map.regrids else ages
        for name, tensor in receipt.entered.items():
            if name in parameters:
                young[name] = torch.full(tensor.shape, born, dtype=torch.uint8, device=tensor.device)
        self._young = {name: ages for name, ages in young.items() if ages.any()}
        if any((ages == born).any() for ages in self._young.values()):
            self._births.append(birth)

    def came_to(self, subnetwork: SubNetwork) -> None:
        """Nothing is known of the ages of what was loaded, so nothing is young."""
        self._young = {}

    @property
    def progress(self) -> float:
        """The share of the run that is over; within an epoch of unknown length, as at its beginning."""
        steps = self.run.steps_in(self.run.network.current, self.run.steps_known)
        return min(1.0, (self.run.epoch + (min(1.0, self._step / steps) if steps else 0.0)) / self.run.epochs)

    def factors(self, progress: float, rates: Sequence[float]) -> list[float]:
        """What steps are multiplied by, for those there from the beginning and for each birth in order.

        Args:
            progress: the share of the run that is over.
            rates: learning rates up to there, `POINTS` of them in a whole run.
        """
        now = _rate(rates, progress)
        shares = [(progress - birth) / (1 - birth) for birth in self._births]
        return [1.0, *(min(self.most, max(1.0, _rate(rates, v) / now)) if now > 0 else 1.0 for v in shares)]

    def _before_update(self, number: int, optimizer: Optimizer, *_: Any) -> None:
        if not self.run.at_work:
            return
        progress = self.progress
        young = [p for name, p in self.run.network.model.named_parameters() if name in self._young]
        for place, group in enumerate(optimizer.param_groups):
            rates = self._rates.setdefault(f"{number}.{place}", [])
            # A point that no step falls on has the rate of the step behind it.
            missing = int(progress * POINTS) + 1 - len(rates)
            rates += [float(group["lr"])] * missing if missing > 0 else []
            factors = self.factors(progress, rates) if young else [1.0]
            if any(factor != 1 for factor in factors):
                held = {*group["params"]}
                # With or without a gradient: a closure may yet compute it.
                self._before |= {p: (p.detach().clone(), factors) for p in young if p in held}

    @torch.no_grad()
    def _after_update(self, optimizer: Optimizer, *_: Any) -> None:
        if not self._before:
            return
        for name, parameter in self.run.network.model.named_parameters():
            if parameter in self._before:
                before, factors = self._before.pop(parameter)
                table = torch.tensor(factors, dtype=torch.float32, device=parameter.device)
                scale = table[self._young[name].int()]
                longer = before + scale.to(parameter.dtype) * (parameter - before)
                parameter.copy_(torch.where(scale == 1, parameter, longer))

    def end_step(self) -> None:
        """Count it."""
        self._step += 1

    def end(self) -> None:
        """Leave the optimizers alone."""
        take_off(self._handles)
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """Births, the ages of all entries that are not of the beginning, and the rates so far."""
        return {**self.notes(), "young": dict(self._young)}

    def notes(self) -> dict[str, Any]:
        """All but the ages."""
        rates = {group: [*of_group] for group, of_group in self._rates.items()}
        return {"births": [*self._births], "rates": rates, "step": self._step, "young": None}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """The same; without the ages, nothing is young."""
        births = list(map(float, state["births"]))
        rates = {str(group): list(map(float, of_group)) for group, of_group in state["rates"].items()}
        step, young = int(state["step"]), {str(name): ages for name, ages in (state["young"] or {}).items()}
        if step < 0 or any(not 0 <= birth < 1 for birth in births):
            raise ValueError("a step, or a birth, out of range")
        if any(ages.dtype != torch.uint8 or int(ages.max()) > len(births) for ages in young.values()):
            raise ValueError("ages of entries that were never born")

        def load() -> None:
            there = dict(self.run.network.model.named_parameters())
            self._births, self._rates, self._step = births, rates, step
            if not self.run.ended:  # it goes on from before its end
                self._look()
            self._young = {
                name: ages.to(there[name].device, copy=True)
                for name, ages in young.items()
                if name in there and there[name].shape == ages.shape
            }

        return load


def _rate(rates: Sequence[float], share: float) -> float:
    return rates[min(len(rates) - 1, int(max(0.0, share) * POINTS))]

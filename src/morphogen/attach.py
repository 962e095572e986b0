"""A method inside anyone's own training loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .errors import ConfigError
from .fake import Example
from .graph.trace import trace
from .methods import Method
from .momentum import MomentumNetwork
from .morph.commit import Receipt, morph
from .morph.drop_path import lay_out_drop_path
from .morph.entry import depth_named
from .morph.rehearsal import rehearse
from .morph.rezero import fold_factors
from .network import Network
from .schedule.stages import Regularisation, Stage
from .subnet import SubNetwork


@dataclass
class Attached:
    """A method at work on a model.

    Attributes:
        network: the traced model; `network.current` is what trains now.
        stages: the method's schedule for this run.
        epochs: length of the run.
        steps_per_epoch: optimizer steps in an epoch, where the method needs to know.
        momentum: the average that grown blocks will come from; None where none is needed any more.
        history: (epoch, sub-network) of each morph so far, the first at epoch 0; it replays the run.
    """

    network: Network
    method: Method
    stages: Sequence[Stage]
    optimizer: Optimizer | Sequence[Optimizer]
    ema: nn.Module | Sequence[nn.Module] | None
    epochs: int
    steps_per_epoch: int | None = None
    momentum: MomentumNetwork | None = None
    history: list[tuple[int, SubNetwork]] = field(default_factory=list)

    def begin_epoch(self, epoch: int) -> Receipt | None:
        """Call before the first batch of every epoch, counted from 0; morphs where the schedule says.

        Returns:
            What the morph did, or None where the network stays as it is.
        """
        if epoch < 0:
            raise ConfigError("epoch out of range", expected="epochs counted from 0", found=f"{epoch}")
        self.network.drop_path_scale = self.regularisation(epoch).drop_path
        number = max(i for i, stage in enumerate(self.stages) if stage.start <= epoch)
        due, receipt = self.stages[number].subnetwork, None
        if due != self.network.current:
            receipt = morph(
                self.network,
                due,
                optimizer=self.optimizer,
                ema=self.ema,
                operator=self.method.operator,
                depth_operator=self.method.depth_operator,
                momentum=self.momentum,
            )
        lay_out_drop_path(self.network)
        if receipt is not None or not self.history:
            self.history.append((epoch, due))
            self._average_for(number)
        return receipt

    def end_step(self) -> None:
        """Call after every optimizer step; the momentum network follows, where the method has one."""
        if self.momentum is not None:
            self.momentum.update_parameters(self.network.model)

    def end(self) -> None:
        """Call when training is over: what an operator keeps in the model while it trains (`rezero`) goes."""
        trees = [self.network.model, *_several(self.ema)]
        fold_factors(trees, _several(self.optimizer))

    def regularisation(self, epoch: int) -> Regularisation:
        """How strong the recipe's regularisation is in an epoch."""
        return self.method.regularisation(epoch, self.epochs)

    def _average_for(self, number: int) -> None:
        """Keep a momentum network in this stage if a later one grows from it."""
        nexts = [i for i in range(number + 1, len(self.stages)) if self._grows_from_average(i)]
        if self.method.momentum is None or not nexts:
            self.momentum = None
            return
        steps = (self.stages[nexts[0]].start - self.stages[number].start) * (self.steps_per_epoch or 0)
        decay = self.method.momentum.decay_over(steps)
        if self.momentum is None:
            self.momentum = MomentumNetwork(self.network.model, decay)
        self.momentum.decay = decay

    def _grows_from_average(self, number: int) -> bool:
        """Whether a stage takes weights from the momentum network: new blocks, or, in Momentum Growth, all."""
        before, after = (self.stages[i].subnetwork.blocks for i in (number - 1, number))
        return depth_named(self.method.depth_operator).everything or any(
            set(after[name]) - set(before[name]) for name in after
        )


def _distinct(stages: Sequence[Stage]) -> list[Stage]:
    """The stages that differ from the one before."""
    return [s for i, s in enumerate(stages) if i == 0 or s.subnetwork != stages[i - 1].subnetwork]


def _several(value: Any) -> list[Any]:
    """None, one, or several of something as a list."""
    return [] if value is None else [value] if isinstance(value, (nn.Module, Optimizer)) else list(value)


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    method: Method,
    *,
    example: Example,
    epochs: int,
    steps_per_epoch: int | None = None,
    ema: nn.Module | Sequence[nn.Module] | None = None,
    exclude: Iterable[str] = (),
) -> Attached:
    """Trace a model and bring it to the method's first sub-network; the loop stays the user's.

        run = morphogen.attach(model, optimizer, NetworkExpansion(width=0.5, stages=5), example=images, epochs=90)
        for epoch in range(90):
            run.begin_epoch(epoch)
            ...
            optimizer.step()
            run.end_step()  # where the method keeps a momentum network

    Args:
        model: the dense network, on its device; it is changed in place and ends dense.
        optimizer: its optimizer or optimizers, made from `model.parameters()`.
        method: such as `NetworkExpansion(width=0.5, stages=5)`.
        example: an input of the size used in training; see `trace`.
        epochs: length of the run.
        steps_per_epoch: optimizer steps in an epoch; for a momentum network whose horizon is a share of its stage.
        ema: averaged copies of the model to change along.
        exclude: module paths to leave whole.

    Raises:
        ConfigError: the method does not fit the run's length or the model.
        TraceError, MorphError: see `trace` and `morph`; also where a later stage could not run.
    """
    if epochs < 1:
        raise ConfigError("epochs out of range", expected="at least 1", found=f"{epochs}")
    if method.momentum is not None and method.momentum.decay is None and steps_per_epoch is None:
        raise ConfigError(
            "the momentum network's horizon is a share of the stage, whose steps are not known",
            where=type(method).__name__,
            expected="attach(..., steps_per_epoch=...), or a decay",
        )
    network = trace(model, example, exclude=exclude)
    stages = _distinct(method.schedule(network, epochs))
    rehearse(network, [stage.subnetwork for stage in stages], method.depth_operator)
    attached = Attached(network, method, stages, optimizer, ema, epochs, steps_per_epoch)
    attached.begin_epoch(0)
    return attached

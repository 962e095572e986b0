"""A method inside anyone's own training loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from .errors import ConfigError
from .graph.trace import trace
from .methods import Method
from .morph.commit import Receipt, morph
from .morph.trial import try_out
from .network import Example, Network
from .schedule.stages import Regularisation, Stage
from .subnet import SubNetwork


@dataclass
class Attached:
    """A method at work on a model.

    Attributes:
        network: the traced model; `network.current` is what trains now.
        stages: the method's schedule for this run.
        history: (epoch, sub-network) of each morph so far, the first at epoch 0; it replays the run.
    """

    network: Network
    method: Method
    stages: Sequence[Stage]
    optimizer: Optimizer | Sequence[Optimizer]
    ema: nn.Module | Sequence[nn.Module] | None
    epochs: int
    history: list[tuple[int, SubNetwork]] = field(default_factory=list)

    def begin_epoch(self, epoch: int) -> Receipt | None:
        """Call before the first batch of every epoch, counted from 0; morphs where the schedule says.

        Returns:
            What the morph did, or None where the network stays as it is.
        """
        if epoch < 0:
            raise ConfigError("epoch out of range", expected="epochs counted from 0", found=f"{epoch}")
        due = [stage.subnetwork for stage in self.stages if stage.start <= epoch][-1]
        if due == self.network.current:
            return None
        receipt = morph(self.network, due, optimizer=self.optimizer, ema=self.ema, operator=self.method.operator)
        self.history.append((epoch, due))
        return receipt

    def end_step(self) -> None:
        """Call after every optimizer step."""

    def regularisation(self, epoch: int) -> Regularisation:
        """How strong the recipe's regularisation is in an epoch."""
        return self.method.regularisation(epoch, self.epochs)


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    method: Method,
    *,
    example: Example,
    epochs: int,
    ema: nn.Module | Sequence[nn.Module] | None = None,
    exclude: Iterable[str] = (),
) -> Attached:
    """Trace a model and bring it to the method's first sub-network; the loop stays the user's.

        run = morphogen.attach(model, optimizer, NetworkExpansion(width=0.5, stages=5), example=images, epochs=90)
        for epoch in range(90):
            run.begin_epoch(epoch)
            ...

    Args:
        model: the dense network, on its device; it is changed in place and ends dense.
        optimizer: its optimizer or optimizers, made from `model.parameters()`.
        method: such as `NetworkExpansion(width=0.5, stages=5)`.
        example: an input of the size used in training; see `trace`.
        epochs: length of the run.
        ema: averaged copies of the model to change along.
        exclude: module paths to leave whole.

    Raises:
        ConfigError: the method does not fit the run's length or the model.
        TraceError, MorphError: see `trace` and `morph`; also where a later stage could not run.
    """
    if epochs < 1:
        raise ConfigError("epochs out of range", expected="at least 1", found=f"{epochs}")
    network = trace(model, example, exclude=exclude)
    stages = method.schedule(network, epochs)
    for stage in stages:
        try_out(network, stage.subnetwork)
    attached = Attached(network, method, stages, optimizer, ema, epochs)
    attached.begin_epoch(0)
    if not attached.history:
        attached.history.append((0, network.current))
    return attached

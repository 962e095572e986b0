"""Pruning by a group lasso: PruneTrain (SC 2019, Algorithm 1), what it is compared with, and growth before it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..dense.network import Network
from ..errors import ConfigError
from ..morph.growth import GrowthOperator
from ..parts import Grow, Prune
from ..pruning.policy import Pruning
from ..run.part import Part
from ..schedule.growth import growth
from ..schedule.linear import linear_ratios
from ..schedule.stages import Stage
from .method import Method


@dataclass(frozen=True)
class Sparsifying(Method):
    """The dense network, and a group lasso that makes channels sparse.

    Attributes:
        ratio: the lasso penalty ratio (equation 3), in (0, 1); the paper finds 0.2 to 0.25 right for its long runs.
        threshold: a channel none of whose weights is as large as this is sparse.
        multiple_of: channel counts stay at multiples of this, such as 8 or 16; see `morphogen plan`.
        proximal: apply the penalty as a proximal step after the optimizer's, which makes exact zeros; for AdamW, and
            for short runs.

    Raises:
        ConfigError: a setting out of range.
    """

    ratio: float = 0.25
    threshold: float = 1e-4
    multiple_of: int = 1
    proximal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._policy((1,))

    def parts(self) -> Sequence[Part]:
        """The dense network throughout; what leaves it is read off the weights."""
        return [Prune(self.pruning)]

    @abstractmethod
    def pruning(self, epochs: int) -> Pruning:
        """When the penalty is at work, and when what is sparse goes."""

    def _policy(self, at: tuple[int, ...], start: int = 0, stop: int | None = None, **more: Any) -> Pruning:
        return Pruning(self.ratio, at, start, stop, self.threshold, self.multiple_of, self.proximal, **more)


@dataclass(frozen=True)
class PruneTrain(Sparsifying):
    """Begin with the dense network; the group lasso makes channels sparse, and every interval they are taken out.

    Attributes:
        interval: the reconfiguration interval in epochs; None is an eighteenth of the run, the paper's 10 of 182 and 5
            of 90 epochs.
        start: the share of the run before which there is no penalty, in [0, 1).
        finetune: the share of the run, at its end, that trains on without the penalty, in [0, 1); what has been pruned
            stays out. The paper has 0, and fine-tunes in epochs of their own.
        folded: penalise weights with the batch norm behind them folded in: gamma times the weight by the running
            deviation. A filter's own size means nothing there. The paper has False.
        target: the share of the dense network's FLOPs to be left at the end, in (0, 1): lambda is steered to it at
            every reconfiguration. The paper has None: lambda stays as the ratio has set it.

    The other settings are those of `Sparsifying`.

    Raises:
        ConfigError: a setting out of range.
    """

    interval: int | None = None
    start: float = 0.0
    finetune: float = 0.0
    folded: bool = False
    target: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        who = type(self).__name__
        if not 0 <= self.start < 1:
            raise ConfigError("start out of range", where=who, expected="0 <= start < 1", found=f"{self.start}")
        if not 0 <= self.finetune < 1:
            raise ConfigError(
                "finetune out of range", where=who, expected="0 <= finetune < 1", found=f"{self.finetune}"
            )
        self._policy((1,), target=self.target)
        if self.interval is not None and not (isinstance(self.interval, int) and self.interval >= 1):
            raise ConfigError(
                "interval out of range", where=who, expected="epochs, at least 1", found=f"{self.interval}"
            )

    def pruning(self, epochs: int) -> Pruning:
        """A reconfiguration after every interval from the start of the penalty on, and one at the end.

        Raises:
            ConfigError: the interval is longer than what is left of the run.
        """
        start, stop = round(self.start * epochs), epochs - round(self.finetune * epochs)
        interval = self.interval or max(1, round(epochs / 18))
        if start + interval > stop:
            raise ConfigError(
                "the reconfiguration interval is longer than the run",
                where=type(self).__name__,
                expected=f"at most {stop - start} epochs, which have the penalty",
                found=f"{interval}",
            )
        at = (*range(start + interval, stop, interval), stop)
        return self._policy(at, start, stop if self.finetune else None, folded=self.folded, target=self.target)


@dataclass(frozen=True)
class OneTime(Sparsifying):
    """Group lasso throughout; what is sparse is taken out once.

    One reconfiguration (Alvarez and Salzmann, NeurIPS 2017; PruneTrain, Figure 2c).

    Attributes:
        at: the share of the run after which, in (0, 1).

    The other settings are those of `Sparsifying`.

    Raises:
        ConfigError: a setting out of range.
    """

    at: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.at < 1:
            raise ConfigError("at out of range", where="OneTime", expected="0 < at < 1", found=f"{self.at}")

    def pruning(self, epochs: int) -> Pruning:
        """One reconfiguration."""
        return self._policy((round(self.at * epochs),))


@dataclass(frozen=True)
class SSL(Sparsifying):
    """Train the dense network, sparsify it at full size, take out what is sparse, fine-tune.

    Structured sparsity from a trained network (Wen et al., NeurIPS 2016), the practice PruneTrain is compared to.

    Three runs in one: each begins the recipe's learning-rate schedule anew. PruneTrain puts the cost of such a protocol
    at almost three times that of dense training; give it a run of so many epochs.

    Attributes:
        trained: the share of the run after which the network counts as trained and the penalty begins.
        sparse: the share after which what is sparse is taken out, and fine-tuning begins without the penalty.

    The penalty's coefficient is set on the run's first batch, as PruneTrain's is, so that the same ratio means the same
    strength. The other settings are those of `Sparsifying`.

    Raises:
        ConfigError: a setting out of range.
    """

    trained: float = 0.4
    sparse: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.trained < self.sparse < 1:
            raise ConfigError(
                "shares out of range",
                where="SSL",
                expected="0 < trained < sparse < 1",
                found=f"{self.trained} and {self.sparse}",
            )

    def parts(self) -> Sequence[Part]:
        """One pruning, whose parts of the run each begin the learning-rate schedule anew."""
        return [Prune(self.pruning, self.restarts)]

    def pruning(self, epochs: int) -> Pruning:
        """One reconfiguration, after which the penalty is over.

        Raises:
            ConfigError: a part of the run without an epoch.
        """
        trained, sparse = self.restarts(epochs)
        if not 0 < trained < sparse < epochs:
            raise ConfigError(
                "each of the three parts of the run needs at least an epoch",
                where="SSL",
                found=f"{trained}, {sparse - trained} and {epochs - sparse} of {epochs} epochs",
            )
        return self._policy((sparse,), trained, sparse, from_the_first_batch=True)

    def restarts(self, epochs: int) -> tuple[int, ...]:
        """Sparsifying and fine-tuning begin like runs of their own."""
        return round(self.trained * epochs), round(self.sparse * epochs)


@dataclass(frozen=True)
class GrowThenPrune(PruneTrain):
    """One schedule that begins small, grows to the dense network, and prunes that: what neither paper has.

    Width grows in equal steps until `start`; from there on the group lasso is at work as in PruneTrain.

    Its coefficient is set on the first batch of the grown network.

    Attributes:
        start: the share of the run after which the network is whole and the penalty begins.
        width: share of every layer's channels in the first stage, in (0, 1].
        stages: number of stages of equal length before the whole network's.
        operator: the growth operator.

    The other settings are those of `PruneTrain`.

    Raises:
        ConfigError: a setting out of range.
        MorphError: an unknown operator.
    """

    start: float = 0.4
    width: float = 0.5
    stages: int = 2
    operator: str | GrowthOperator = "quiet"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.width <= 1 or self.stages < 1:
            raise ConfigError(
                "out of range",
                where="GrowThenPrune",
                expected="0 < width <= 1, at least one stage",
                found=f"width {self.width}, stages {self.stages}",
            )
        self.parts()

    def parts(self) -> Sequence[Part]:
        """Growths of the width, then pruning."""
        return [Grow(self.schedule, operator=self.operator), Prune(self.pruning)]

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """Equal steps of width until the penalty begins.

        Raises:
            ConfigError: a stage without an epoch, or a network without channels that can change.
        """
        width = linear_ratios(self.width, self.stages + 1)
        grown = round(self.start * epochs)
        starts = [-(-i * grown // self.stages) for i in range(self.stages + 1)]
        return growth(
            network,
            starts,
            epochs,
            width=width,
            multiple_of=self.multiple_of,
            who="GrowThenPrune",
        )

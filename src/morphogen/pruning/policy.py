"""When a network is sparsified and reconfigured, and how strongly: plain data that a method gives."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

STEP, GAIN = 0.1, 1.3
"""So much more of the FLOPs left than wanted multiplies the coefficient by the gain. Two is too much: it takes some
reconfigurations until channels are zero, and then all would go together."""


@dataclass(frozen=True)
class Pruning:
    """How a run prunes.

    Attributes:
        ratio: the group lasso penalty's share of the whole loss on the first batch it is applied to (PruneTrain,
            equation 3), in (0, 1).
        at: the epochs before which the network is reconfigured, ascending; the run's length stands for its end.
        start: the first epoch with the penalty.
        stop: the first epoch without it again; None where it stays.
        threshold: a channel none of whose weights is as large as this is sparse.
        multiple_of: channel counts stay at multiples of this, by keeping the strongest of those about to go.
        proximal: apply the penalty as a proximal step after the optimizer's instead of through the loss.
        from_the_first_batch: set the coefficient on the run's first batch, though the penalty starts later.
        folded: penalise, and judge, weights with the batch norm behind them folded in.
        target: the share of the dense network's FLOPs to be left when the penalty stops, in (0, 1); the coefficient is
            steered to it at every reconfiguration. None leaves it as the ratio has set it.

    Raises:
        ConfigError: a value out of range, or nothing between start and the last reconfiguration.
    """

    ratio: float
    at: tuple[int, ...]
    start: int = 0
    stop: int | None = None
    threshold: float = 1e-4
    multiple_of: int = 1
    proximal: bool = False
    from_the_first_batch: bool = False
    folded: bool = False
    target: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ConfigError(
                "the lasso penalty ratio is out of range", expected="0 < ratio < 1", found=f"{self.ratio}"
            )
        if not 0 < self.threshold < float("inf") or not isinstance(self.multiple_of, int) or self.multiple_of < 1:
            raise ConfigError(
                "out of range",
                expected="threshold above 0 and finite, multiple_of a whole number from 1",
                found=f"threshold {self.threshold}, multiple_of {self.multiple_of}",
            )
        if self.target is not None and not 0 < self.target < 1:
            raise ConfigError(
                "the target is out of range",
                expected="a share of the FLOPs, 0 < target < 1, or None",
                found=f"{self.target}",
            )
        if not self.at or self.at[-1] <= self.start:
            raise ConfigError(
                "the network would never be reconfigured",
                expected=f"an epoch after {self.start}, where the penalty starts",
                found=f"{self.at}",
            )

    def penalises(self, epoch: int) -> bool:
        """Whether an epoch trains with the penalty."""
        return self.start <= epoch and (self.stop is None or epoch < self.stop)

    def steered(self, coefficient: float, left: float, epoch: int) -> float:
        """The coefficient after a reconfiguration before an epoch.

        From the start of the penalty to its stop the network is to lose FLOPs linearly, down to the target. A tenth of
        the dense network's FLOPs above that makes the coefficient 1.3 times larger, a tenth below it as much smaller,
        never by more than that at once; with the target reached it is 0.

        Args:
            coefficient: before.
            left: the share of the dense network's FLOPs that is left.
            epoch: of the run.
        """
        if self.target is None:
            return coefficient
        if left <= self.target:
            return 0.0
        done = (epoch - self.start) / ((self.at[-1] if self.stop is None else self.stop) - self.start)
        excess = left - (1 - min(1.0, done) * (1 - self.target))
        return coefficient * GAIN ** max(-1.0, min(1.0, excess / STEP))

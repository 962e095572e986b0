"""Train the last layers first: those before them are frozen, and need no backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import nn

from ..dense.network import Network
from ..dense.subnet import is_inside
from ..errors import ConfigError
from ..morph.exchange import tensors_of
from ..run.part import Part
from ..run.run import Run
from ..schedule.linear import equal_starts


class Unfreeze(Part):
    """Freeze the first layers of the network, in the order in which they run, fewer of them in each stage.

    The gradient is followed back to the first layer that is trained, and no further. Frozen layers normalise by the
    statistics of the batch as ever, and their running statistics move on; weights and moments stay as they are. What
    is frozen without this part stays so.
    """

    name: ClassVar[str] = "unfreeze"
    order: ClassVar[int] = 2

    def __init__(self, shares: Sequence[float]):
        """
        Args:
            shares: for each stage, all of one length, the share of the layers that are trained, in (0, 1], rising.

        Raises:
            ConfigError: shares that do not.
        """
        if not shares or not all(0 < a <= 1 for a in shares) or any(a >= b for a, b in pairwise(shares)):
            raise ConfigError(
                "shares out of range", where=self.name, expected="rising, each in (0, 1]", found=f"{[*shares]}"
            )
        self.shares = tuple(shares)
        self._count = len(shares)
        self._stage: int | None = None

    def settings(self) -> tuple[Any, ...]:
        """The shares."""
        return self.shares

    def plan(self, network: Network, epochs: int) -> None:
        """Find out what is frozen in each stage; raises ConfigError where there are more stages than epochs."""
        if epochs < self._count:
            raise ConfigError(
                "a stage needs at least one epoch",
                where=self.name,
                expected=f"at most {epochs} stages",
                found=f"{self._count}",
            )
        self._starts = equal_starts(epochs, self._count)
        self._frozen = [frozen_first(network, share) for share in self.shares]

    def begin(self, run: Run) -> None:
        """Raises ConfigError beside a part that would change what is frozen, or asks for its gradient."""
        super().begin(run)
        if run.assembly.prunes or any(part.alone for part in run.assembly):
            raise ConfigError(
                "what is frozen can neither be pruned nor searched",
                where=run.who,
                expected="unfreezing alone, or beside growth and resizing",
            )
        if sum(isinstance(part, Unfreeze) for part in run.assembly) > 1:
            raise ConfigError("only one of several methods can unfreeze", where=run.who, expected="one of them")

    def before_epoch(self, epoch: int) -> bool:
        """Look the stage of the epoch up."""
        before, self._stage = self._stage, self._of(epoch)
        return self._stage != before

    def _of(self, epoch: int) -> int:
        """The number of an epoch's stage."""
        return max(number for number, start in enumerate(self._starts) if start <= epoch)

    def begin_epoch(self, epoch: int) -> None:
        """Freeze what the stage does not train."""
        if self._stage is not None:
            self._freeze(self._frozen[self._stage])

    def end(self) -> None:
        """Everything is trained again that was."""
        self._freeze(frozenset())

    def close(self) -> None:
        """The same."""
        self._freeze(frozenset())

    def state_dict(self) -> dict[str, Any]:
        """The stage at work."""
        return {"stage": self._stage}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """The same stage."""
        stage = state["stage"]
        if stage is not None and (type(stage) is not int or not 0 <= stage < len(self.shares)):
            raise ValueError(f"no stage {stage!r} of {len(self.shares)}")

        def load() -> None:
            self._stage = stage
            self._freeze(self._frozen[stage] if stage is not None and not self.run.ended else frozenset())

        return load

    def _freeze(self, names: frozenset[str]) -> None:
        network = self.run.network
        parameters = dict(network.model.named_parameters())
        parameters |= {n: p for n, p in tensors_of(network.outside).items() if isinstance(p, nn.Parameter)}
        ours = frozenset(n for n, p in parameters.items() if n in names and (n in network.frozen or p.requires_grad))
        for name in ours:
            parameters[name].requires_grad_(False).grad = None
        for name in network.frozen - ours:
            parameters[name].requires_grad_(True)
        network.frozen = ours


def frozen_first(network: Network, share: float) -> frozenset[str]:
    """The parameters before the last `share` of the layers, in the order in which these run.

    A layer is a module with a weight. A block of a stack is trained as a whole, or not at all.
    """
    ran: dict[str, int] = {}
    for number, call in enumerate(next(path.calls for path in network.structure.paths if path.training)):
        ran.setdefault(call.path, number)
    blocks = [path for stack in network.stacks for path in stack.blocks]
    first: dict[str, int] = {}
    for name, _ in network.fake.dense.named_parameters():
        module = next((path for path in blocks if is_inside(name, path)), name.rpartition(".")[0])
        first[name] = min((at for path, at in ran.items() if not module or is_inside(path, module)), default=0)
    weights = [name for name, layout in network.structure.tensors.items() if layout.role.kind == "weight"]
    layers = [first[name] for name in weights if name in first]
    if share == 1 or not layers:
        return frozenset()
    cut = min({*layers}, key=lambda at: (abs(sum(other >= at for other in layers) - share * len(layers)), at))
    return frozenset(name for name, at in first.items() if at < cut)

"""The parts of a method, put together: what they want of a run as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from ..dense.network import Network
from ..dense.subnet import SubNetwork, intersection
from ..errors import ConfigError
from ..morph.entry import DepthOperator, depth_named
from ..morph.growth import GrowthOperator, named
from ..schedule.revision import Option
from ..schedule.stages import Regularisation, Stage
from .part import Part

P = TypeVar("P", bound=Part)

OPERATOR, DEPTH_OPERATOR = "quiet", "interpolate"
"""What fills new channels and blocks where no part says."""


class Policy(Protocol):
    """What a run needs of a method."""

    def parts(self) -> Sequence[Part]:
        """New parts, of one run."""
        ...


class Assembly:
    """The parts of one run, in order.

    Attributes:
        operator, depth_operator: what fills new channels and new blocks.

    Raises:
        ConfigError: parts that do not go together.
    """

    def __init__(self, policy: Policy):
        self._who, self._parts = str(policy), tuple(_without_twins(policy))
        movers = [part for part in self._parts if part.moves]
        if len(movers) > 1 and any(part.alone for part in movers):
            raise ConfigError(
                "a method with an elastic supernet cannot be combined with others",
                where=self._who,
                todo="Train with the schedule it found: Retrain(file=...) + ...",
            )
        self.operator: str | GrowthOperator = self._agreed("operator", "channels") or OPERATOR
        self.depth_operator: str | DepthOperator = self._agreed("depth_operator", "blocks") or DEPTH_OPERATOR

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts)

    def of(self, kind: type[P]) -> P | None:
        """The part of a kind, None where there is none; of several the first."""
        return next((part for part in self._parts if isinstance(part, kind)), None)

    def named(self) -> dict[str, Part]:
        """The parts by the keys of their states; the second of a kind has a number."""
        named: dict[str, Part] = {}
        for part in self._parts:
            number = 1 + sum(other.name == part.name for other in named.values())
            named[part.name if number == 1 else f"{part.name} {number}"] = part
        return named

    def plan(self, network: Network, epochs: int) -> None:
        """Have all parts learn the network and the length of the run; raises ConfigError, see `Part.plan`."""
        self._dense = network.dense
        for part in self._parts:
            part.plan(network, epochs)

    @property
    def stages(self) -> list[Stage]:
        """The schedule as far as it is known: a stage wherever a part begins one."""
        return self._merged([part.stages for part in self._parts])

    def continued(self, found: Sequence[SubNetwork]) -> list[Stage]:
        """The schedule after searches that found these sub-networks, in order."""
        return self._merged([part.continued(found) for part in self._parts])

    def _merged(self, each: Sequence[Sequence[Stage]]) -> list[Stage]:
        schedules = [stages for stages in each if stages]
        if len(schedules) < 2:
            return list(schedules[0]) if schedules else [Stage(0, self._dense)]
        starts = sorted({stage.start for schedule in schedules for stage in schedule})
        alive = [[[s.subnetwork for s in schedule if s.start <= at][-1] for schedule in schedules] for at in starts]
        return distinct([Stage(at, intersection(parts)) for at, parts in zip(starts, alive, strict=True)])

    @property
    def possible(self) -> list[SubNetwork]:
        """Every sub-network that may come to train, but for what pruning leaves."""
        known = [more for part in self._parts if (more := part.possible()) is not None]
        stages = [s for stage in self.stages for s in (*stage.candidates, stage.subnetwork)]
        return list(dict.fromkeys([s for more in known for s in more] or stages))

    def postpone(self, epoch: int, option: Option) -> None:
        """Put off the stage that begins at an epoch; raises ConfigError where none does."""
        growing = [part for part in self._parts if part.stages]
        beginning = [part for part in growing if any(stage.start == epoch for stage in part.stages[1:])]
        for part in beginning or growing[:1]:
            part.postpone(epoch, option)

    @property
    def busy(self) -> bool:
        """Whether steps run only a part of the network."""
        return any(part.busy for part in self._parts)

    @property
    def restores(self) -> bool:
        """Whether what leaves is to come back as it was."""
        return named(self.operator).restores or depth_named(self.depth_operator).restores

    @property
    def prunes(self) -> bool:
        """Whether any channel may go, whatever the stages say."""
        return any(part.prunes for part in self._parts)

    @property
    def shrinks(self) -> bool:
        """Whether the run leaves a smaller network than the dense one."""
        return any(part.shrinks for part in self._parts)

    def steps_in(self, subnetwork: SubNetwork, steps: int) -> int:
        """Optimizer steps of an epoch of a sub-network, where there would be so many with the first batch."""
        for part in self._parts:
            steps = part.steps_in(subnetwork, steps)
        return steps

    def regularisation(self, epoch: int) -> Regularisation:
        """The weakest that a part asks for."""
        each = [Regularisation(), *(part.regularisation(epoch) for part in self._parts)]
        return Regularisation(
            min(r.randaugment for r in each), min(r.erasing for r in each), min(r.drop_path for r in each)
        )

    @property
    def restarts(self) -> tuple[int, ...]:
        """Epochs at which the recipe's learning-rate schedule begins anew."""
        return tuple(sorted({epoch for part in self._parts for epoch in part.restarts}))

    def _agreed(self, attribute: str, what: str) -> Any:
        """The operator that all parts with one name."""
        named = list(dict.fromkeys(op for part in self._parts if (op := getattr(part, attribute)) is not None))
        if len(named) > 1:
            raise ConfigError(
                f"the methods fill new {what} in different ways",
                where=self._who,
                expected=f"one {attribute}",
                found=" and ".join(str(getattr(each, "__name__", each)) for each in named),
                todo=f"Give both the same {attribute}=",
            )
        return named[0] if named else None


def _without_twins(policy: Policy) -> Iterator[Part]:
    """The parts in order; of two methods' equal ones, of a kind that a run has one of, the first."""
    seen: dict[type[Part], Part] = {}
    for part in sorted(policy.parts(), key=lambda each: each.order):
        twin = seen.setdefault(type(part), part) if part.single else part
        if twin is part:
            yield part
        elif twin.settings() != part.settings():
            raise ConfigError(
                f"only one of several methods can {part.name}",
                where=str(policy),
                expected="one, or the same settings in both",
            )


def distinct(stages: Sequence[Stage]) -> list[Stage]:
    """The stages that differ from the one before."""
    return [s for i, s in enumerate(stages) if i == 0 or replace(s, start=stages[i - 1].start) != stages[i - 1]]

"""Several methods in one run: each moves its own dimensions of the same sub-network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..morph.entry import depth_named
from ..network import Network
from ..pruning.policy import Pruning
from ..schedule.mini_batch import MiniBatch
from ..schedule.stages import Regularisation, Stage
from ..subnet import intersection
from .method import Method


@dataclass(frozen=True)
class Combined(Method):
    """At every epoch, what is alive in the stages of all methods: `EfficientTrain + NetworkExpansion(depth=0.5)`.

    Channels and blocks are those alive in all of them, the resolution is the smallest. Operators come from the
    first method that needs one of the kind; images are resized as the first method says that does so in a way
    of its own; regularisation is the weakest asked for; the mini-batch is that of the one method that has any.

    Attributes:
        methods: two or more.

    Raises:
        ConfigError: fewer than two methods, or several that change the mini-batch.
    """

    methods: tuple[Method, ...] = ()

    def __post_init__(self) -> None:
        if len(self.methods) < 2:
            raise ConfigError("nothing to combine", expected="two methods or more", found=f"{len(self.methods)}")
        batching = [type(m).__name__ for m in self.methods if m.mini_batch is not None]
        if len(batching) > 1:
            raise ConfigError(
                "several methods change the mini-batch", expected="one at most", found=" and ".join(batching)
            )
        deep = next((m for m in self.methods if depth_named(m.depth_operator).momentum), None)
        deep = deep or next((m for m in self.methods if m.depth_operator != Method.depth_operator), self.methods[0])
        wide = next((m for m in self.methods if m.operator != Method.operator), self.methods[0])
        resizing = next((m.resizing for m in self.methods if m.resizing != Method.resizing), Method.resizing)
        settings = {
            "operator": wide.operator,
            "depth_operator": deep.depth_operator,
            "decay": deep.decay,
            "horizon": deep.horizon,
            "resizing": resizing,
        }
        for name, value in settings.items():
            object.__setattr__(self, name, value)

    def __add__(self, other: Method) -> Method:
        return Combined((*self.methods, other))

    def schedule(self, network: Network, epochs: int) -> Sequence[Stage]:
        """A stage wherever one of the methods begins one."""
        schedules = [method.schedule(network, epochs) for method in self.methods]
        if any(stage.candidates for schedule in schedules for stage in schedule):
            raise ConfigError(
                "a method with an elastic supernet cannot be combined with others",
                where=" + ".join(type(method).__name__ for method in self.methods),
                todo="Train with the schedule it found: Retrain(file=...) + ...",
            )
        starts = sorted({stage.start for schedule in schedules for stage in schedule})
        return [
            Stage(
                start,
                intersection([[s.subnetwork for s in schedule if s.start <= start][-1] for schedule in schedules]),
            )
            for start in starts
        ]

    def pruning(self, epochs: int) -> Pruning | None:
        """That of the one method that prunes."""
        policies = [policy for method in self.methods if (policy := method.pruning(epochs)) is not None]
        if len(policies) > 1:
            raise ConfigError(
                "only one of several methods can prune",
                where=" + ".join(type(method).__name__ for method in self.methods),
                expected="one",
                found=f"{len(policies)}",
            )
        return policies[0] if policies else None

    def restarts(self, epochs: int) -> tuple[int, ...]:
        """Those of all methods."""
        return tuple(sorted({epoch for method in self.methods for epoch in method.restarts(epochs)}))

    @property
    def mini_batch(self) -> MiniBatch | None:
        """That of the one method that has any."""
        return next((m.mini_batch for m in self.methods if m.mini_batch is not None), None)

    def regularisation(self, epoch: int, epochs: int) -> Regularisation:
        """The weakest of all methods'."""
        each = [method.regularisation(epoch, epochs) for method in self.methods]
        return Regularisation(
            min(r.randaugment for r in each), min(r.erasing for r in each), min(r.drop_path for r in each)
        )

"""What the stages of a run cost: FLOPs, parameters and memory of a step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache

from ..cost.flops import Cost, cost
from ..dense.subnet import SubNetwork
from ..errors import ConfigError
from ..parts import Batch
from ..parts.resizing import Size
from ..report.ledger import StageCost
from ..run.run import Run
from .tasks.task import Beside


class Costs:
    """The costs of one run's steps."""

    def __init__(
        self,
        attached: Run,
        precision: Callable[[], AbstractContextManager[None]],
        beside: Callable[[Size | None], Beside],
    ):
        """`precision` surrounds a forward pass, as in training; `beside` is what images of a size (height, width) cost
        besides, see `Task.beside`."""
        self._attached, self._precision, self._beside = attached, precision, cache(beside)

    def of_step(self, subnetwork: SubNetwork, batch_size: int, frozen: frozenset[str] | None = None) -> Cost:
        """What a training step of so many images costs, with what is frozen (by default: now)."""
        with self._precision():
            traced = cost(self._attached.network, subnetwork, batch_size, frozen)
            more = self._beside(subnetwork.resolution)
        return replace(
            traced,
            parameters=traced.parameters + more.parameters,
            forward=traced.forward + batch_size * more.forward,
            training=traced.training + batch_size * more.training,
        )

    def of_stage(self, epoch: int, subnetwork: SubNetwork, batch_size: int, searching: bool = False) -> StageCost:
        """What a stage of this sub-network costs, before its first step."""
        price = self.of_step(subnetwork, batch_size)
        return StageCost(
            epoch,
            subnetwork.resolution,
            price.parameters,
            price.training,
            batch_size,
            searching,
            inference_flops=price.forward // batch_size,
            normalisation=price.normalisation,
            layers=price.layers,
            memory=self._memory(subnetwork, batch_size),
        )

    def _memory(self, subnetwork: SubNetwork, batch_size: int) -> int | None:
        """Bytes of a step as modelled, in runs that are about memory; None where a step cannot be modelled."""
        if not self._attached.assembly.shrinks and self._attached.part(Batch) is None:
            return None
        try:
            return self._attached.memory.bytes(subnetwork, batch_size)
        except ConfigError:
            return None

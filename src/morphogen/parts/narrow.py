"""A schedule that ends with fewer channels than the network has."""

from __future__ import annotations

from typing import ClassVar

from ..dense.subnet import SubNetwork
from .grow import Grow, Schedule


class Narrow(Grow):
    """Follow a schedule that is known before the run, and whose last network is the one to keep.

    The channels that stay are the most important ones when the first of them go, see `importance`.
    """

    name: ClassVar[str] = "narrow"
    sharded: ClassVar[bool] = False  # weights are looked at in the middle of the run
    shrinks: ClassVar[bool] = True

    def __init__(self, schedule: Schedule):
        """`schedule`: of the run; its channels go by rank."""
        super().__init__(schedule, choose="importance")

    def final(self) -> SubNetwork:
        """That of the last stage."""
        return self.stages[-1].subnetwork

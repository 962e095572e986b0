"""PruneTrain, what it is compared with, and growth before it."""

from .grow_then_prune import GrowThenPrune
from .one_time import OneTime
from .prunetrain import PruneTrain
from .ssl import SSL

__all__ = ["SSL", "GrowThenPrune", "OneTime", "PruneTrain"]

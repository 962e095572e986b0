"""What methods are made of: each part does one thing to a run, and keeps its own state."""

from .average import Average
from .batch import Batch
from .grow import Grow
from .prune import Prune
from .rates import Rates
from .regularise import Regularise
from .resize import Resize
from .search import Search
from .unfreeze import Unfreeze

__all__ = ["Average", "Batch", "Grow", "Prune", "Rates", "Regularise", "Resize", "Search", "Unfreeze"]

"""What methods are made of: each part does one thing to a run, and keeps its own state."""

from .average import Average
from .batch import Batch
from .choose import Choose
from .grow import Grow
from .narrow import Narrow
from .prune import Prune
from .rates import Rates
from .regularise import Regularise
from .resize import Resize
from .search import Search
from .search_shares import SearchShares
from .unfreeze import Unfreeze

__all__ = [
    "Average",
    "Batch",
    "Choose",
    "Grow",
    "Narrow",
    "Prune",
    "Rates",
    "Regularise",
    "Resize",
    "Search",
    "SearchShares",
    "Unfreeze",
]

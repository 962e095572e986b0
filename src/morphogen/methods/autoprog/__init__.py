"""AutoProg, and the elastic supernet it is compared with."""

from .autoprog import AutoProg
from .supernet import Supernet

__all__ = ["AutoProg", "Supernet"]

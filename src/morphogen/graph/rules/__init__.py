"""One rule per ATen op, in one table. Importing this fills it."""

from . import layers, pointwise, shape, space
from .table import RULES, Call, Value, rule

__all__ = ["RULES", "Call", "Value", "layers", "pointwise", "rule", "shape", "space"]

"""One rule per ATen op, in one table. Importing this fills it."""

from . import indexing, layers, pointwise, products, recurrent, shape, space
from .table import RULES, Call, Value, rule

__all__ = [
    "RULES",
    "Call",
    "Value",
    "indexing",
    "layers",
    "pointwise",
    "products",
    "recurrent",
    "rule",
    "shape",
    "space",
]

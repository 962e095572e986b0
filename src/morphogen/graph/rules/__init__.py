"""One rule per ATen op, in one table. Importing this fills it."""

from . import indexing, layers, pointwise, products, recurrent, shape, space
from .pointwise import rule_of
from .table import LAYERS, RULES, Axes, Call, Rule, Value, layer_rule, rule

__all__ = [
    "LAYERS",
    "RULES",
    "Axes",
    "Call",
    "Rule",
    "Value",
    "indexing",
    "layer_rule",
    "layers",
    "pointwise",
    "products",
    "recurrent",
    "rule",
    "rule_of",
    "shape",
    "space",
]

"""Methods: one folder (or file) each, one line each in the registry."""

from .dense import Dense
from .method import Method
from .network_expansion import NetworkExpansion

METHODS: dict[str, type[Method]] = {
    "Dense": Dense,
    "NetworkExpansion": NetworkExpansion,
}
"""The registry: the name users write -> the method."""

__all__ = ["METHODS", "Dense", "Method", "NetworkExpansion"]

"""Growth operators: how what is new in a grown network is filled. Importing this enters them in the tables."""

from .depths import identity, interpolate, mogrow, momentum, mostack, random_blocks, rezero, stack
from .orthogonal import orthogonal
from .random import random
from .replicate import replicate

__all__ = [
    "identity",
    "interpolate",
    "mogrow",
    "momentum",
    "mostack",
    "orthogonal",
    "random",
    "random_blocks",
    "replicate",
    "rezero",
    "stack",
]

"""Growth operators: how what is new in a grown network is filled. Importing this enters them in the tables."""

from .bert2bert import bert2bert, fpi
from .depths import identity, interpolate, mogrow, momentum, mostack, random_blocks, rezero, stack
from .net2net import net2net
from .orthogonal import orthogonal
from .quiet import quiet
from .random import random
from .replicate import replicate
from .restore import restore, restore_blocks

__all__ = [
    "bert2bert",
    "fpi",
    "identity",
    "interpolate",
    "mogrow",
    "momentum",
    "mostack",
    "net2net",
    "orthogonal",
    "quiet",
    "random",
    "random_blocks",
    "replicate",
    "restore",
    "restore_blocks",
    "rezero",
    "stack",
]

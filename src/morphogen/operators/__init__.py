"""Growth operators: how what is new in a grown network is filled. Importing this enters them in the table."""

from .orthogonal import orthogonal
from .random import random
from .replicate import replicate

__all__ = ["orthogonal", "random", "replicate"]

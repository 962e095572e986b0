"""Several methods in one run: each moves its own dimensions of the same sub-network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..run.assembly import Assembly
from ..run.part import Part
from .method import Method


@dataclass(frozen=True)
class Combined(Method):
    """The parts of all of them: `EfficientTrain + NetworkExpansion(depth=0.5)`; the order does not matter.

    Channels and blocks are those alive in all of them, the resolution is the smallest, regularisation is the weakest
    asked for.

    Attributes:
        methods: two or more.

    Raises:
        ConfigError: fewer than two methods, or parts of which a run has one, each with other settings: two ways to
            fill new channels, to prune, to change the mini-batch or to resize images.
    """

    methods: tuple[Method, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.methods) < 2:
            raise ConfigError("nothing to combine", expected="two methods or more", found=f"{len(self.methods)}")
        each = [m for method in self.methods for m in (method.methods if isinstance(method, Combined) else [method])]
        object.__setattr__(self, "methods", tuple(sorted(each, key=repr)))
        Assembly(self)

    def __str__(self) -> str:
        """The names of all."""
        return " + ".join(map(str, self.methods))

    def parts(self) -> Sequence[Part]:
        """All of them."""
        return [part for method in self.methods for part in method.parts()]

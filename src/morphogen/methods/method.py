"""What a method is: its settings, and the parts that it puts to work in a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..dense.network import Network
from ..errors import ConfigError
from ..morph.entry import DepthOperator, depth_named
from ..parts import Average
from ..run.part import Part
from .settings import check_types


class Method(ABC):
    """A policy over one network. A method is a frozen dataclass of its settings, checked when it is made."""

    def __post_init__(self) -> None:
        """Refuse settings of the wrong type; a method that checks more begins with this.

        Raises:
            ConfigError: a setting of another type than declared.
        """
        check_types(self)

    def __add__(self, other: Method) -> Method:
        """Both at once, see `Combined`."""
        from .combined import Combined  # which is a method itself

        return Combined((self, other))

    def __str__(self) -> str:
        """Its name, for messages."""
        return type(self).__name__

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """New parts, for one run.

        Raises:
            ConfigError, MorphError: a setting out of range, an unknown operator.
        """


def average_for(
    depth_operator: str | DepthOperator | None, decay: float | None = None, horizon: float = 0.1
) -> list[Part]:
    """The momentum network, where a depth operator needs one."""
    average = Average(decay, horizon)  # which checks the settings, needed or not
    return [] if depth_operator is None or not depth_named(depth_operator).momentum else [average]


def check_growth(who: str, stages: int, multiple_of: int, **shares: float | None) -> None:
    """Refuse settings of growth in equal steps that are out of range.

    Raises:
        ConfigError: a share (of width, of depth) outside (0, 1], less than one stage, multiples of less than 1.
    """
    for name, share in shares.items():
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"{name} out of range", where=who, expected=f"0 < {name} <= 1", found=f"{share}")
    if stages < 1 or multiple_of < 1:
        raise ConfigError(
            "out of range",
            where=who,
            expected="stages and multiple_of at least 1",
            found=f"stages {stages}, multiple_of {multiple_of}",
        )


def whole_blocks(network: Network, parts: int, who: str) -> None:
    """Refuse a network whose deepest stack cannot begin with one of so many parts and be doubled to its full size.

    Raises:
        ConfigError: it has no stack, or the number of blocks does not divide.
    """
    deepest = max(network.stacks, key=lambda stack: stack.size, default=None)
    if deepest is not None and deepest.size % parts:
        raise ConfigError(
            f"this stack cannot begin with 1/{parts} of its blocks",
            where=f"{who}, {deepest.name}",
            expected=f"a multiple of {parts} blocks",
            found=f"{deepest.size}",
            todo="Use NetworkExpansion(depth=...) or Prog, which take any depth",
        )

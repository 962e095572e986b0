"""A schedule that changes while it runs: a stage that could not be trained begins later, or in two steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar, get_args

from ..dense.subnet import SubNetwork
from ..errors import ConfigError
from .stages import Stage

K = TypeVar("K")

Option = Literal["smaller", "later"]
"""What a stage may be given: half of what it adds now and the rest an epoch later, or all of it an epoch later."""


def revised(stages: Sequence[Stage], epoch: int, option: str, epochs: int) -> list[Stage]:
    """A schedule in which the stage that begins at an epoch begins otherwise; one that it overtakes is left out.

    Args:
        stages: in order.
        epoch: at which the stage begins that is to be put off.
        option: see `Option`.
        epochs: length of the run.

    Raises:
        ConfigError: no stage but the first begins there, it is a search, or no epoch is left; an unknown option.
    """
    if option not in get_args(Option):
        raise ConfigError("no such option for a stage", expected=" or ".join(get_args(Option)), found=f"{option}")
    number = next((i for i, stage in enumerate(stages) if stage.start == epoch), 0)
    before, stage = stages[number - 1], stages[number]
    if number == 0 or stage.candidates or before.candidates:
        raise ConfigError(
            "this epoch cannot begin in another way",
            where=f"epoch {epoch}",
            expected="the first of a stage that follows another, neither of them a search",
            found="a search" if number else "no such stage",
        )
    if epoch + 1 >= epochs:
        raise ConfigError("no epoch is left to put the stage off to", where=f"epoch {epoch}")
    half = [Stage(epoch, halfway(before.subnetwork, stage.subnetwork))] if option == "smaller" else []
    new = [*stages[:number], *half, replace(stage, start=epoch + 1), *stages[number + 1 :]]
    return [one for one, after in zip(new, [*new[1:], None], strict=True) if after is None or one.start < after.start]


def halfway(before: SubNetwork, after: SubNetwork) -> SubNetwork:
    """`before` with the first half of the channels and of the blocks that `after` adds; its resolution stays."""
    return replace(
        before,
        channels=_with_half(before.channels, after.channels),
        blocks=_with_half(before.blocks, after.blocks),
    )


def _with_half(before: Mapping[K, tuple[int, ...]], after: Mapping[K, tuple[int, ...]]) -> dict[K, tuple[int, ...]]:
    new = {name: [unit for unit in units if unit not in {*before[name]}] for name, units in after.items()}
    return {name: tuple(sorted((*units, *new[name][: -(-len(new[name]) // 2)]))) for name, units in before.items()}

"""Growth schedules over one network: from shares of its width, depth and resolution to sub-networks."""

from __future__ import annotations

from collections.abc import Sequence

from ..dense.depth import Table, nested
from ..dense.grid import Resolution
from ..dense.network import Network, round_half_up
from ..errors import ConfigError, SubNetworkError
from .stages import Stage


def growth(
    network: Network,
    starts: Sequence[int],
    epochs: int,
    *,
    width: Sequence[float] | None = None,
    depth: Sequence[float] | None = None,
    resolution: Sequence[float | Resolution] | None = None,
    table: Table | None = None,
    multiple_of: int = 1,
    who: str = "",
) -> list[Stage]:
    """Stages from shares; a dimension that is not mentioned is whole throughout.

    Args:
        network: the dense network.
        starts: the first epoch of each stage.
        epochs: length of the run.
        width, depth, resolution: for each stage the share that is alive, in (0, 1], the last one 1. Depth is
            rounded to whole blocks of each stack, at least one; blocks stay where they are as the network
            deepens, as the index table says. A resolution may be a size in pixels.
        table: the index table of the depth operator.
        multiple_of: see `Network.subnetwork`.
        who: the method, for messages.

    Raises:
        ConfigError: more stages than epochs, or a dimension that this network cannot change.
    """
    if len(set(starts)) < len(starts) or starts[-1] >= epochs:
        raise ConfigError(
            "a stage needs at least one epoch",
            where=who,
            expected=f"at most {epochs} stages"
            if len(starts) > epochs
            else f"fewer stages, or more than {epochs} epochs",
            found=f"{len(starts)} stages from epochs {', '.join(map(str, starts))}",
        )
    if width and min(width) < 1 and not network.groups:
        raise ConfigError(
            "no channels of this model can change",
            where=who,
            todo="`morphogen inspect` says what is pinned and why",
        )
    if resolution and network.dense.resolution is None:
        raise ConfigError(
            "resolution cannot change: this model takes no images",
            where=who,
            expected="an example of images (N, C, H, W)",
            todo="NetworkExpansion(depth=0.5, stages=2) grows the depth alone, with width=0.5 the width",
        )
    if depth and min(depth) < 1 and not network.stacks:
        raise ConfigError(
            "this model has no block stack, so its depth cannot change",
            where=who,
            expected="at least two interchangeable blocks, one feeding the next",
            todo="`morphogen inspect` says which blocks were looked at",
        )
    blocks: list[dict[str, tuple[int, ...]]] = [{} for _ in starts]
    if depth and table:
        deepest = max((stack.size for stack in network.stacks), default=1)
        if round_half_up(min(depth) * deepest) < 1:
            raise ConfigError(
                "this depth leaves no block",
                where=who,
                expected=f"a share of at least {0.5 / deepest:.2g}",
                found=f"{min(depth):.3g}",
            )
        for stack in network.stacks:
            lengths = [max(1, round_half_up(share * stack.size)) for share in depth]
            for stage, alive in zip(blocks, nested(lengths, table), strict=True):
                stage[stack.name] = alive
    try:
        return [
            Stage(
                start,
                network.subnetwork(
                    width=None if width is None else width[i],
                    blocks=blocks[i],
                    resolution=None if resolution is None else _size(resolution[i]),
                    multiple_of=multiple_of,
                ),
            )
            for i, start in enumerate(starts)
        ]
    except SubNetworkError as error:
        raise ConfigError(str(error), where=who) from error


def _size(asked: float | Resolution) -> float | Resolution:
    """A share as a float: whole numbers are pixels, and a share may be the number 1."""
    return asked if isinstance(asked, tuple) else float(asked)

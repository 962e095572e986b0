"""What comes back is what it was when it left: for networks that were trained before, such as pretrained ones."""

from __future__ import annotations

import torch

from ..errors import MorphError
from ..morph.entry import Entry, depth_operator
from ..morph.growth import Gap, operator


@operator("restore", restores=True)
def restore(gap: Gap) -> torch.Tensor:
    """Channels as they were when they left, in weights, normalisations and running statistics alike.

    Those that stayed have gone on learning, so that the function changes; nothing of what the network knew is lost. The
    morph that makes the network small names this operator too, since what leaves has to be kept (see `morph/away.py`).
    """
    return gap.map.carry(gap.old, _known(gap.kept, gap.map.name).to(gap.old))


@depth_operator("restore", restores=True)
def restore_blocks(entry: Entry) -> torch.Tensor:
    """Blocks as they were when they left; they are taken out evenly, so that each had a neighbour that stayed."""
    return _known(entry.kept, entry.name)


def _known(kept: torch.Tensor | None, name: str) -> torch.Tensor:
    if kept is None:
        raise MorphError("nothing was kept of this tensor when a part of it left", where=name)
    return kept

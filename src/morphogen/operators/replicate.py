"""Growth by plain copy: the comparison that Network Expansion finds worst."""

from __future__ import annotations

import torch

from ..morph.growth import Gap, operator


@operator("replicate")
def replicate(gap: Gap) -> torch.Tensor:
    """New channels are copies of the old ones, each in turn, weights and normalisation alike.

    The inputs are copied without dividing, so the function changes (Network Expansion, Table 6, `replicate`:
    "we copy the upper-left corner of W^o").
    """
    return gap.map.select(gap.old)

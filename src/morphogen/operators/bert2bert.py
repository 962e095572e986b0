"""Width growth of transformers from themselves (Chen et al.: bert2BERT, ACL 2022, section 3.3)."""

from __future__ import annotations

import torch

from ..morph.growth import Gap, operator


@operator("fpi", rescales=True, preserving=True)
def fpi(gap: Gap) -> torch.Tensor:
    """Function-preserving initialisation: Net2Net's copies, for every matrix, vector and head of a transformer."""
    return gap.map.divide(gap.old)


@operator("bert2bert", rescales=True)
def bert2bert(gap: Gap) -> torch.Tensor:
    """Advanced knowledge initialisation (AKI): as FPI, but new outputs are those of the same layer one block up.

    The copies differ so, and the function changes. What is in no block or in the last one grows by FPI.
    """
    new = fpi(gap)
    return new if gap.above is None else gap.map.replace_outputs(new, gap.map.divide(gap.above))

"""Function-preserving width growth by copying units (Chen, Goodfellow, Shlens: Net2Net, ICLR 2016)."""

from __future__ import annotations

import torch

from ..morph.growth import Gap, operator


@operator("net2net", rescales=True, preserving=True)
def net2net(gap: Gap, noise: float = 0.0) -> torch.Tensor:
    """Net2WiderNet (section 3.1, equation 2, Algorithm 1): new units are copies of old ones, each in turn.

    Weights that read copied units are divided by the number of copies. With `noise`, the weights into every copy but
    the first get normal numbers of that share of the tensor's standard deviation, so that copies can part company.
    """
    new = gap.map.divide(gap.old)
    if noise == 0 or gap.map.role.kind != "weight":
        return new
    std = gap.old.to(torch.promote_types(gap.old.dtype, torch.float32)).std(correction=0)
    return gap.map.replace_outputs(new, new + (noise * std * gap.randn(*new.shape)).to(new.dtype))

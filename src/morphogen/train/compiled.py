"""`torch.compile` for a network that changes size: one compilation for each size, never a silent fall back to eager."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import nn

from ..machine.private import compiling

ROOM = 2
"""How many more compilations of the same code each size allows; PyTorch counts those of all runs of a process, and
gives up after 8."""

_sizes: list[int] = []
"""An entry for every network that this process has compiled."""


def compiled(model: nn.Module, *, graphs: bool) -> nn.Module:
    """The model compiled for tensors of its present sizes, when it is called first; at sizes that were there before,
    what was compiled then runs again. It is called under `settings`.

    Args:
        model: as it is to be called, wrapped for several ranks or not.
        graphs: replay it as a CUDA graph.
    """
    _sizes.append(len(_sizes))
    return cast(nn.Module, torch.compile(model, dynamic=False, mode="reduce-overhead" if graphs else None))


def settings() -> AbstractContextManager[None]:
    """PyTorch's settings while compiled networks run."""
    return compiling(ROOM * len(_sizes))

"""`torch.compile` for a network that changes size: one compilation for each size, never a silent fall back to eager."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch._dynamo import config
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import counters

COMPILER_ERRORS = (TorchDynamoException, FailOnRecompileLimitHit)

ROOM = 2
"""How many more compilations of the same code each size allows; PyTorch counts those of all runs of a process, and
gives up after 8."""


def compiled(model: nn.Module, *, graphs: bool) -> nn.Module:
    """The model compiled for tensors of its present sizes, when it is called first; at sizes that were there before,
    what was compiled then runs again.

    Args:
        model: as it is to be called, wrapped for several ranks or not.
        graphs: replay it as a CUDA graph.
    """
    config.recompile_limit += ROOM
    config.accumulated_recompile_limit += ROOM
    config.fail_on_recompile_limit_hit = True
    # Parameters stay the same objects when they change size; without this, torch 2.11 takes them for unchanged.
    config.skip_tensor_guards_with_matching_dict_tags = False
    return cast(nn.Module, torch.compile(model, dynamic=False, mode="reduce-overhead" if graphs else None))


def graphs_compiled() -> int:
    """How many graphs this process has compiled."""
    return counters["stats"]["unique_graphs"]

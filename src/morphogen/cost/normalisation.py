"""Bytes that the normalisation layers of a training step move: they wait for memory, not for arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

PASSES = {"batch_norm": 9, "instance_norm": 9, "group_norm": 9, "layer_norm": 9, "rms_norm": 8}
"""How often a step goes through a tensor of the input's size, by the name of PyTorch's function."""


class NormalisationTraffic(TorchFunctionMode):
    """Adds up the traffic of every normalisation that a forward pass runs under it, as it would be in training.

    A normalisation reads its input several times (PruneTrain, section 2.1), and these tensors are too large for a
    cache. Forward: read for the mean, read for the variance, read and write to normalise. Backward: read the input and
    the gradient for the two sums over them, then read both and write the input's gradient. That is 9 passes of the
    input's elements at the input's own size; RMSNorm has no mean, so 8. Statistics, scales and shifts, a figure or two
    a channel, are left out, and so is what a kernel may save by joining passes.

    Attributes:
        bytes: so far, of forward and backward pass together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function; what it calls in turn is not seen, so nothing counts twice."""
        kwargs = kwargs or {}
        passes = PASSES.get(getattr(func, "__name__", ""))
        if passes:
            read: torch.Tensor = args[0] if args else kwargs["input"]
            self.bytes += passes * read.numel() * read.element_size()
        return func(*args, **kwargs)

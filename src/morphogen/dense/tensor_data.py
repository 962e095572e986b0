"""`tensor.data`, behind which PyTorch sees nothing: read and written as ops that an export can read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class DataSeen(TorchFunctionMode):
    """While it is active, `tensor.data` is `tensor.detach()`, and `tensor.data = value` copies.

    Export lets nobody write to a parameter; what is written to one goes to a copy.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call; those of `data` in another way."""
        if getattr(func, "__self__", None) is not torch.Tensor.data:
            return func(*args, **(kwargs or {}))
        tensor, *value = args
        data = tensor.detach().clone() if isinstance(tensor, nn.Parameter) else tensor.detach()
        if func.__name__ == "__get__":
            return data
        data.copy_(*value)
        return None

"""New values for parameters and buffers that stay the same objects."""

from __future__ import annotations

import torch


def assign(tensor: torch.Tensor, value: torch.Tensor, grad: torch.Tensor | None) -> None:
    """Give a parameter or buffer another value of another shape; it stays the same object."""
    if tensor.data_ptr() == value.data_ptr() and tensor.shape == value.shape:
        value = value.clone()
    tensor.grad = None
    # Autograd caches a node for each parameter that knows its shape, and `.data =` renews it only when the
    # dtype changes: without this step a `loss` that is still around would break the next backward pass.
    other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
    tensor.data = tensor.data.new_empty(0, dtype=other)
    tensor.data = value
    tensor.grad = grad

"""Memory of a training step: read off the allocator on CUDA, added up from its parts on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, each storage counted once."""
    return sum({_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def kept_bytes(model: nn.Module, optimizer: Optimizer) -> int:
    """Bytes that stay from step to step: parameters, their gradients, buffers, and the optimizer's state."""
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    state = [value for value in tree_leaves(list(optimizer.state.values())) if isinstance(value, torch.Tensor)]
    return bytes_of([*parameters, *gradients, *model.buffers(), *state])


def saved_bytes(model: nn.Module, forward: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd keeps from a forward pass for the backward pass: the activations, without the weights.

    Each storage is counted once, however many operations keep it.
    """
    own = {_key(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if _key(tensor) not in own:
            saved[_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward()  # alive until here, so that no address is used twice
    del loss
    return sum(saved.values())


def step_bytes(step: Callable[[], object], kept: int, saved: int, others: int, device: torch.device) -> int:
    """Bytes at the peak of a step.

    Args:
        step: runs one.
        kept: what stays from step to step, `kept_bytes`.
        saved: what the forward pass leaves for the backward pass, `saved_bytes`.
        others: what else is on the device and does not belong to this network.
        device: on CUDA the allocator's own peak is read, less `others`; on a CPU, where there is no such figure,
            the peak is taken to be `kept` + `saved`, at the end of the forward pass.
    """
    if device.type != "cuda":
        return kept + saved
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - others


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

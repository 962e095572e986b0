"""Candidates are compared on batches of training, and nothing of that is left in the network."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..dense.network import Network
from ..errors import ConfigError
from ..machine.private import DropoutBase
from ..machine.randomness import own_random


@contextmanager
def undisturbed(network: Network, device: torch.device) -> Iterator[None]:
    """Afterwards buffers (running statistics), gradients, modes and random numbers are what they were."""
    model = network.model
    modes = [(module, module.training) for module in model.modules()]
    places = [(module._buffers, name) for module in model.modules() for name in module._buffers]
    buffers = [(place, name, b, None if b is None else b.clone()) for place, name in places for b in [place[name]]]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with own_random(device):
            yield
    finally:
        for place, name, buffer, value in buffers:
            place[name] = buffer
            if buffer is not None and value is not None and not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)
        for parameter, grad in grads:
            parameter.grad = grad
        for module, training in modes:
            module.training = training


def without_dropout(network: Network) -> None:
    """Stochastic depth would weigh on deep candidates more than on shallow ones."""
    drops = [*network.structure.drop_path, *(d for s in network.stacks for unit in s.drop_path for d in unit)]
    paths = {drop.path for drop in drops}
    for path, module in network.model.named_modules():
        if path in paths or isinstance(module, DropoutBase):
            module.eval()


def seed(number: int) -> None:
    """PyTorch's random numbers, Python's, and NumPy's where it is in use (timm mixes tokens by them)."""
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # without the call that PyTorch queues, with its place in the code, for a device there might be one day
        torch.default_generator.manual_seed(number)
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)


def as_number(loss: Any) -> float:
    """A probe's loss; raises ConfigError where it is not one number."""
    try:
        return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "the probe's loss cannot be used",
            where="Probe",
            expected="the mean loss of a batch, a tensor of one number",
            found=f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__,
        ) from error

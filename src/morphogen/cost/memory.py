"""Bytes of a training step: of one that runs, or of any sub-network at any batch size without running it.

A step is followed operation by operation: every storage counts from the operation that makes it until its last
tensor goes. What autograd keeps for the backward pass, what the backward pass needs besides, and what autocast and the
optimizer make are then counted as they come, each storage once. On fake tensors, which have sizes and nothing else,
the same step costs no memory and no arithmetic.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..dense.network import Network
from ..dense.subnet import SubNetwork
from ..errors import ConfigError, first_line
from ..machine.private import TorchDispatchMode, storage_key, tree_leaves, without_step_hooks
from ..machine.randomness import own_random


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, each storage counted once."""
    return Allocations(tensors).live


def kept_tensors(model: nn.Module, *optimizers: Optimizer) -> list[torch.Tensor]:
    """What stays from step to step: parameters, their gradients, buffers, and the optimizers' state."""
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    state = tree_leaves([list(optimizer.state.values()) for optimizer in optimizers])
    return [*parameters, *gradients, *model.buffers(), *(value for value in state if isinstance(value, torch.Tensor))]


class Allocations(TorchDispatchMode):
    """Follows the storages that exist while operations run, on real or fake tensors.

    What operations need inside themselves (a convolution's workspace) is not seen.

    Attributes:
        live: bytes there are now.
        peak: the most there have been.
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()):
        """`held` are there from the beginning; they count until they go."""
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in held:
            self._note(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note what it returns."""
        outputs = func(*args, **(kwargs or {}))
        for output in (outputs,) if isinstance(outputs, torch.Tensor) else tree_leaves(outputs):
            if isinstance(output, torch.Tensor):
                self._note(output)
        return outputs

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage_key(storage), storage.nbytes()  # a fake storage has no address
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int) -> None:
        del self._known[key]
        self.live -= size


class StepMemory:
    """Bytes of a training step of any sub-network of one network, with its own optimizers.

    The loss is taken to be a sum: what a loss keeps of the model's outputs is left out, as are workspaces, gradient
    buckets of distributed training, and fragments. Gradients are taken to be there during the forward pass, as they
    are where they are set to None just before the backward pass.
    """

    def __init__(
        self, network: Network, optimizers: Sequence[Optimizer], copies: int = 0, autocast: torch.dtype | None = None
    ):
        """To be made while the network is dense and the optimizers hold all of it.

        Args:
            network: the traced model.
            optimizers: of the model.
            copies: averaged copies of the model that are kept.
            autocast: the type of autocast in training; None without.
        """
        names = {parameter: name for name, parameter in network.model.named_parameters()}
        self.network, self.copies, self.autocast = network, copies, autocast
        self._held = [
            (optimizer, [[names[p] for p in group["params"] if p in names] for group in optimizer.param_groups])
            for optimizer in optimizers
        ]
        self._known: dict[tuple[SubNetwork, int], int] = {}

    def bytes(self, subnetwork: SubNetwork, batch_size: int) -> int:
        """Bytes at the peak of a step; nothing is computed, and the model is not touched.

        They grow with the batch, but not along one line: where the peak is the update of the weights, hardly at all.

        Raises:
            ConfigError: a step of this model or of its optimizers needs more than shapes.
        """
        key = subnetwork, batch_size
        if key not in self._known:
            self._known[key] = self._followed(*key)
        return self._known[key]

    def _followed(self, subnetwork: SubNetwork, batch_size: int) -> int:
        network, device = self.network, self.network.fake.device
        model = network.sketch(subnetwork).train()
        tensors = [*model.parameters(), *model.buffers()]
        # Two steps: gradients and the optimizers' state are there in the second.
        with own_random(device), network.fake.mode, Allocations(tensors) as allocations:
            try:
                optimizers = [self._on(optimizer, groups, model) for optimizer, groups in self._held]
                for _ in range(2):
                    self._step(model, optimizers, subnetwork, batch_size)
            except Exception as error:  # whatever the model's or the optimizer's own code raises on fake tensors
                raise ConfigError(
                    f"the memory of a training step cannot be modelled ({first_line(error)})",
                    where=type(network.model).__name__,
                    expected="a model and optimizers whose steps look at shapes alone",
                    todo="Train without a dynamic mini-batch",
                ) from error
        return allocations.peak + self.copies * bytes_of(tensors)

    def _step(self, model: nn.Module, optimizers: Sequence[Optimizer], subnetwork: SubNetwork, batch_size: int) -> None:
        device = self.network.fake.device
        with torch.enable_grad(), torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            output = self.network.fake.run(model, subnetwork.resolution, batch_size)
            outputs = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
            losses = [output.sum() for output in outputs]
        model.zero_grad()
        torch.autograd.backward(losses)
        for optimizer in optimizers:
            optimizer.step()

    @staticmethod
    def _on(optimizer: Optimizer, groups: Sequence[Sequence[str]], model: nn.Module) -> Optimizer:
        """The optimizer as it would be on another model, with no state yet and nobody's hooks."""
        there = dict(model.named_parameters())
        twin = object.__new__(type(optimizer))
        vars(twin).update(vars(optimizer))
        vars(twin).pop("step", None)  # PyTorch's schedulers put theirs there
        twin.state = defaultdict(dict)
        twin.param_groups = [
            {**group, "params": [there[name] for name in names if name in there]}
            for group, names in zip(optimizer.param_groups, groups, strict=True)
        ]
        without_step_hooks(twin)
        return twin

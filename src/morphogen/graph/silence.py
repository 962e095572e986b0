"""Whether a block can be silenced: tried out on random numbers, because a graph read wrongly would ruin training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..dense.bypass import Bypass
from ..dense.double import double
from ..dense.subnet import HandsOn
from ..machine.placement import on_cpu
from ..machine.private import is_fake, tree_flatten, tree_leaves, tree_map, tree_unflatten
from .watch import BATCH


def can_be_silent(block: nn.Module, arguments: tuple[Any, Any], hands_on: HandsOn, writers: Iterable[str]) -> bool:
    """Whether a block, when its writers are zero, returns exactly what it hands on when it is out.

    An activation behind the sum (a ResNet's ReLU) leaves what a block of the same kind returned as it is, so the
    input is what the block itself, with its weights, returns.

    Args:
        block: on fake tensors.
        arguments: what it is called with: positional and keyword arguments, fake tensors.
        hands_on: as in `BlockStack`.
        writers: names of its parameters.
    """
    writers = list(writers)
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    tries = [arguments]
    if all(tensor.ndim and len(tensor) == BATCH for tensor in tensors):  # one example says the same for less
        tries.insert(0, tree_map(lambda leaf: leaf[:1] if isinstance(leaf, torch.Tensor) else leaf, arguments))
    return any(_is_silent(block, each, hands_on, writers) for each in tries)


@on_cpu
def _is_silent(block: nn.Module, arguments: tuple[Any, Any], hands_on: HandsOn, writers: list[str]) -> bool:
    draw = _Drawn()

    def number(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype)
        return draw(value.shape)

    def weight(tensor: torch.Tensor) -> torch.Tensor:
        if not is_fake(tensor):
            return tensor.double() if tensor.is_floating_point() else tensor.clone()
        value = number(tensor)
        value = value.div_(8).abs_() if value.is_floating_point() else value  # variances are positive
        return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            module = double(block, weight).eval()
            leaves, form = tree_flatten(arguments)
            leaves = [number(leaf) for leaf in leaves]

            def run() -> list[Any]:
                args, kwargs = tree_unflatten(leaves, form)
                return tree_leaves(module(*args, **kwargs))

            if not hands_on.zero:
                for slot, value in zip(hands_on.passes, run(), strict=True):
                    if slot >= 0:
                        leaves[slot] = value
            for name in writers:
                module.get_parameter(name).zero_()
            args, kwargs = tree_unflatten(leaves, form)
            expected = tree_leaves(Bypass(hands_on)(*args, **kwargs))
            return all(
                torch.allclose(a, b, atol=1e-9) if isinstance(b, torch.Tensor) else b is None or a == b
                for a, b in zip(run(), expected, strict=True)
            )
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, AssertionError):
            return False  # what cannot be tried is not claimed


class _Drawn:
    """Random numbers, one pool of them over and over; its size is prime, so that no row of a tensor is like another."""

    POOL = 65521

    def __init__(self) -> None:
        self._pool = torch.randn(self.POOL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self._next = 0

    def __call__(self, shape: torch.Size) -> torch.Tensor:
        count = shape.numel()
        times = -(-(self._next + count) // self.POOL)
        drawn = self._pool.repeat(times)[self._next : self._next + count].view(shape)
        self._next = (self._next + count) % self.POOL
        return drawn

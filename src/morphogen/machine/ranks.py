"""Several processes that train one network: what each of them knows of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from ..errors import MorphogenError, TrainingError

T = TypeVar("T")


def rank() -> int:
    """The number of this process, 0 where it is alone."""
    return distributed.get_rank() if _several() else 0


def ranks() -> int:
    """How many there are."""
    return distributed.get_world_size() if _several() else 1


def gathered(value: T) -> list[T]:
    """What each rank holds, by rank; plain data."""
    if not _several():
        return [value]
    values: list[Any] = [None] * ranks()
    distributed.all_gather_object(values, value)
    return values


def decided(value: T) -> T:
    """What rank 0 holds."""
    if not _several():
        return value
    values: list[Any] = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def decided_by_first(find: Callable[[], T]) -> T:
    """What rank 0 finds, on every rank; raises what MorphogenError it raises, on every rank."""
    found: tuple[T | None, MorphogenError | None] = None, None
    if rank() == 0:
        try:
            found = find(), None
        except MorphogenError as error:
            found = None, error
    value, refused = decided(found)
    if refused is not None:
        raise refused
    return cast(T, value)


def mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks, entry by entry."""
    if not _several():
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total / ranks()


def spread(tensors: Iterable[torch.Tensor]) -> None:
    """Every rank takes rank 0's values, in place."""
    if not _several():
        return
    with torch.no_grad():
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            distributed.broadcast(whole, 0)
            tensor.copy_(whole)


def check_same(what: str, tensors: Sequence[torch.Tensor], *rest: Any) -> None:
    """Refuse to go on where ranks hold different values.

    Args:
        what: they are of.
        tensors: of the same number on all ranks.
        rest: whatever else must be equal.

    Raises:
        TrainingError: on every rank, where one differs from rank 0.
    """
    if not _several():
        return
    sums = [_checksum(tensor) for tensor in tensors]
    on_ranks = gathered((sums, rest))
    different = [number for number, other in enumerate(on_ranks) if other != on_ranks[0]]
    if different:
        raise TrainingError(
            f"the ranks hold different values of {what}",
            expected="those of rank 0 on all",
            found=f"others on rank {', '.join(map(str, different))}",
            todo="Give every rank the same model, optimizer and settings",
        )


def _checksum(tensor: torch.Tensor) -> tuple[int, ...]:
    """Shape and bits in a few numbers."""
    bits = tensor.detach().contiguous().view(-1).view(torch.uint8).to(torch.int64)
    places = torch.arange(1, len(bits) + 1, device=bits.device) % 65_521
    return *tensor.shape, int(bits.sum()), int((bits * places).sum())


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1

"""Several processes that train one network: what each of them knows of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from ..errors import MorphogenError, TrainingError, first_line

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


@contextmanager
def as_one(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> Iterator[None]:
    """What one rank raises in here, all raise; and they are at the same place afterwards, see `check_same`."""
    failed = None
    try:
        yield
    except Exception as error:  # raised below, once the other ranks know
        failed = error
    try:
        check_same({"error": "" if failed is None else first_line(failed), **facts}, tensors or {})
    except TrainingError:
        if failed is None:
            raise
    if failed is not None:
        raise failed


def check_same(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse to go on where ranks are at different places, or hold other weights.

    Where they do not, it is one all-reduce of eight numbers, on the tensors' device. They are the largest and, of their
    negatives, the largest on any rank of: a hash of the facts, and sums of the tensors' bits.

    Args:
        facts: what is to be equal, plain data by name.
        tensors: what is to be equal bit by bit, without what is each rank's own, as statistics of a batch norm are.

    Raises:
        TrainingError: on every rank, where one differs from rank 0, or does not answer.
    """
    if not _several():
        return
    sums = [_bits(tensor) for tensor in tensors.values()]
    device = sums[0].device if sums else torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
    what = {**facts, "number of tensors": len(sums)}
    facts_sum = int.from_bytes(blake2b(repr(what).encode(), digest_size=7).digest())
    mine = torch.tensor([facts_sum, 0, 0, 0], device=device)
    if sums:
        places = torch.arange(1, 1 + len(sums), device=device)[:, None]
        each = torch.stack([own.to(device) for own in sums])
        mine[1:] = torch.cat([(each * places).sum(0), each[:, :1].sum(0)]) % _MOST
    with _answering():
        most = torch.cat([mine, -mine])
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        if torch.equal(most[:4], -most[4:]):
            return
        _refuse(gathered((what, {name: own.tolist() for name, own in zip(tensors, sums, strict=True)})))


def _refuse(of_ranks: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Say what differs."""
    facts, tensors = [own for own, _ in of_ranks], [own for _, own in of_ranks]
    stopped = {number: own["error"] for number, own in enumerate(facts) if own.get("error")}
    if stopped:
        rank, message = next(iter(stopped.items()))
        raise TrainingError(f"rank {rank} has stopped", where="ranks", found=message)
    for what in facts[0]:
        found = {number: own.get(what) for number, own in enumerate(facts)}
        other = [number for number, value in found.items() if value != found[0]]
        if other:
            raise TrainingError(
                f"the ranks are at different places: another {what}",
                expected="the same model, method, optimizer and epochs on all",
                found=f"{str(found[0])[:60]} on rank 0, {str(found[other[0]])[:60]} on rank {other[0]}",
            )
    names = [name for name, own in tensors[0].items() if any(each.get(name) != own for each in tensors)]
    other = [number for number, own in enumerate(tensors) if own != tensors[0]]
    raise TrainingError(
        f"the ranks hold different values of {len(names)} of {len(tensors[0])} weights",
        where=names[0] if names else "",
        expected="those of rank 0 on all",
        found=f"others on rank {', '.join(map(str, other))}",
        todo="Average the gradients of all that is trained (DistributedDataParallel), in every step",
    )


@contextmanager
def _answering() -> Iterator[None]:
    """PyTorch's errors of a rank that is gone, or is at another call."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"another rank is gone, or does not answer ({first_line(error)})",
            where=f"rank {rank()}",
            expected="every rank at the same call of the run (begin_epoch, for one)",
            todo="See its own message",
        ) from error


_MOST = 2**62


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Two sums of a tensor's bits, of which the second knows their places; read once, with no copy of it."""
    flat = tensor.detach().contiguous().view(-1)
    if flat.element_size() not in _INTEGERS or flat.is_complex():
        flat = flat.view(torch.uint8)
    bits = flat.view(_INTEGERS[flat.element_size()])
    rows = len(bits) // _COLUMNS
    columns = bits[: rows * _COLUMNS].view(rows, _COLUMNS).sum(0, dtype=torch.int64)
    rest = bits[rows * _COLUMNS :].to(torch.int64)
    columns[: len(rest)] += rest
    places = torch.arange(1, 1 + _COLUMNS, device=bits.device)
    return torch.stack([columns.sum(), (columns * places).sum()]) % _MOST


_COLUMNS = 251
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1

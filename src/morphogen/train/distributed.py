"""Several processes under torchrun: PyTorch's DistributedDataParallel around the model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, TrainingError, first_line
from ..machine.ranks import ranks

PATIENCE = timedelta(seconds=60)
"""After which a rank that hears nothing of another gives up."""


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Meet the other processes that torchrun has started; nothing where it has started none.

    Raises:
        TrainingError: another rank is gone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or any(word in str(error) for word in GONE):
            raise TrainingError(
                f"another rank is gone, or does not answer ({first_line(error)})",
                where=f"rank {os.environ.get('RANK')}",
                todo="See its own message; then continue with --resume, with as many ranks as there are",
            ) from error
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


GONE = ("Connection closed by peer", "Timed out", "Connection reset by peer", "gloo", "NCCL")
"""What PyTorch's plain errors say of a peer that is lost."""


def wrapped(model: nn.Module) -> nn.Module:
    """The model as the ranks train it together; itself where this process is alone."""
    return DistributedDataParallel(model) if ranks() > 1 else model


def share(batch_size: int) -> int:
    """Images of a step on each rank.

    Raises:
        ConfigError: they cannot be dealt out evenly, so that the mean of the ranks' gradients would not be the batch's.
    """
    if batch_size % ranks():
        raise ConfigError(
            "the images of a step cannot be dealt out evenly",
            where="batch_size",
            expected=f"a multiple of {ranks()} ranks",
            found=f"{batch_size}",
        )
    return batch_size // ranks()

"""Whether the memory of the device is predicted to hold every stage of a run."""

from __future__ import annotations

import os
import warnings

import torch

from ..errors import ConfigError
from ..machine.ranks import ranks
from ..parts import Batch
from ..run.run import Run


def warn_of_lack(attached: Run, batch_size: int, device: torch.device) -> None:
    """Say, before a run begins, from which epoch on its steps are predicted not to fit.

    What operations need inside themselves is not counted, so that a step which is predicted to fit may yet not.

    Args:
        attached: at its first stage.
        batch_size: images in a step on this rank.
        device: of the model.
    """
    there = memory_of(device)
    if there is None or attached.part(Batch) is not None:  # whose own batches follow the memory
        return
    memory, stages = attached.memory, attached.stages
    try:
        if memory.bytes(attached.network.dense, batch_size) <= there:
            return
        needs = ((stage.start, memory.bytes(stage.subnetwork, batch_size)) for stage in stages)
        epoch, need = next(((at, need) for at, need in needs if need > there), (None, 0))
    except ConfigError:  # a step that cannot be followed without being run
        return
    if epoch is not None:
        warnings.warn(
            f"from epoch {epoch + 1} on a step of {batch_size} images is predicted to need {need / 2**30:.1f} GiB of "
            f"{there / 2**30:.1f}: {'it will go in pieces' if ranks() == 1 else 'the run will stop there'}; a smaller "
            "batch_size leaves it whole",
            stacklevel=2,
        )


def memory_of(device: torch.device) -> int | None:
    """Bytes of a device's memory that this process may have; None where that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such figure on this system
        return None

"""What a loop with Hugging Face's Accelerate needs beyond `morphogen.attach`: checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from ..errors import CheckpointError, ConfigError
from ..machine.files import replaced
from ..run.run import Run
from .hooks import saved_state

FILE = "morphogen.pt"
"""In each folder of `accelerator.save_state`: the run, with its weights."""


def carry(accelerator: Accelerator, run: Run) -> None:
    """Make `save_state` and `load_state` carry the run: its sub-network, weights, averages, schedule and search.

    The weights are in the run's file alone. Attach, prepare the model, and call this before `load_state`.

    Raises:
        ConfigError: the processes share the model's tensors out, by FSDP or DeepSpeed, say.
    """
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ConfigError(
            "the model is in a form that cannot be changed",
            where="carry",
            expected="one process, or DistributedDataParallel on CPUs or GPUs",
            found=str(accelerator.distributed_type),
        )

    def save(models: list[nn.Module], weights: list[Any], folder: str) -> None:
        for number in reversed(range(len(weights))):
            if _is_of(accelerator, models[number], run):
                del weights[number]
        state = run.state_dict()
        if accelerator.is_main_process:
            with replaced(Path(folder) / FILE) as file:
                torch.save(state, file)

    def load(models: list[nn.Module], folder: str) -> None:
        models[:] = [model for model in models if not _is_of(accelerator, model, run)]
        path = Path(folder) / FILE
        if not path.exists():
            raise CheckpointError(
                "the folder holds no run of Morphogen", where=str(path), expected="one saved after carry(...)"
            )
        run.load_state_dict(saved_state(path))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _is_of(accelerator: Accelerator, model: nn.Module, run: Run) -> bool:
    return accelerator.unwrap_model(model) is run.network.model

"""What a loop with Hugging Face's Accelerate needs beyond `morphogen.attach`: wrapping anew, and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..attach import Attached
from ..errors import CheckpointError, ConfigError
from ..files import replaced

FILE = "morphogen.pt"
"""In each folder of `accelerator.save_state`: the run, with its weights."""


def wrapped(accelerator: Accelerator, run: Attached) -> nn.Module:
    """The model as the accelerator runs it; call after every morph, and after `load_state`.

        if run.begin_epoch(epoch) is not None:
            model = wrapped(accelerator, run)

    DistributedDataParallel knows parameters by their sizes, so with several processes there is a new one.

    Args:
        accelerator: that has prepared the model.
        run: attached to the model before it was prepared.

    Raises:
        ConfigError: the processes share the model's tensors out, by FSDP, say.
    """
    model = run.network.model
    if accelerator.num_processes == 1:
        return model
    if accelerator.distributed_type not in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ConfigError(
            "the model is in a form that cannot be changed",
            where="wrapped",
            expected="one process, or DistributedDataParallel on CPUs or GPUs",
            found=str(accelerator.distributed_type),
        )
    settings = {} if accelerator.ddp_handler is None else accelerator.ddp_handler.to_kwargs()
    settings.setdefault("find_unused_parameters", run.searching is not None)
    devices = None if accelerator.device.type == "cpu" else [accelerator.device]
    wrapper = DistributedDataParallel(model, device_ids=devices, **settings)
    if accelerator.ddp_handler is not None:
        accelerator.ddp_handler.register_comm_hook(wrapper)
    return wrapper


def carry(accelerator: Accelerator, run: Attached) -> None:
    """Make `save_state` and `load_state` carry the run: its sub-network, weights, averages, schedule and search.

    The weights are in the run's file alone. After `load_state`, take the model from `wrapped`.
    """

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
        run.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _is_of(accelerator: Accelerator, model: nn.Module, run: Attached) -> bool:
    return accelerator.unwrap_model(model) is run.network.model

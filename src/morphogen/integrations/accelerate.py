"""What a loop with Hugging Face's Accelerate needs beyond `morphogen.attach`: wrapping anew, and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
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
        ConfigError: the accelerator has not prepared the model, or wrapped it in something else.
    """
    models = accelerator._models
    number = next((i for i, model in enumerate(models) if _is_of(accelerator, model, run)), None)
    old = None if number is None else models[number]
    if number is None or not (old is run.network.model or isinstance(old, DistributedDataParallel)):
        raise ConfigError(
            "the accelerator does not run this model, or in a form that cannot be changed",
            where="wrapped",
            expected="accelerator.prepare(model, ...), in one process or with DistributedDataParallel",
            found="nothing" if old is None else type(old).__name__,
        )
    if isinstance(old, DistributedDataParallel):
        settings = {} if accelerator.ddp_handler is None else accelerator.ddp_handler.to_kwargs()
        settings["find_unused_parameters"] = run.searching is not None
        models[number] = DistributedDataParallel(
            old.module, device_ids=old.device_ids, output_device=old.output_device, **settings
        )
        if accelerator.ddp_handler is not None:
            accelerator.ddp_handler.register_comm_hook(models[number])
    return models[number]


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

"""What trainers of other libraries have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..dense.fake import Example
from ..errors import CheckpointError, ConfigError, first_line
from ..machine.private import tree_map
from ..machine.reading import read_pickle
from ..methods import Method
from ..parts import Batch, Search
from ..run.assembly import Assembly


def saved_state(path: Path) -> dict[str, Any]:
    """A state that `torch.save` wrote, on the CPU.

    Raises:
        CheckpointError: it is none, or a damaged one.
    """
    try:
        state = read_pickle(path)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the state ({first_line(error)})", where=str(path)) from error


def check_fits(method: Method) -> None:
    """Refuse a method that changes what such a loop keeps to itself.

    Raises:
        ConfigError: the method changes the batch, or throws epochs away.
    """
    assembly = Assembly(method)
    search = assembly.of(Search)
    what = "changes the batch" if assembly.of(Batch) is not None else ""
    what = "throws the epochs of a search away" if search is not None and not search.recycle else what
    if what:
        raise ConfigError(
            f"this method {what}, which the trainer's own loop does not allow",
            where=str(method),
            expected="a method that leaves batches and epochs as they are",
            todo="Leave out DynamicBatch and recycle=False, or write the loop yourself with morphogen.attach",
        )


def moved(example: Example, device: torch.device) -> Example:
    """An example on another device."""
    return tree_map(lambda value: value.to(device) if isinstance(value, torch.Tensor) else value, example)


class LaterWeights:
    """Lets weights of another size pass by, where a library loads them before the run that they belong to is there.

    The run's own state, which brings size and weights, is loaded afterwards.

    Attributes:
        passed: the name of a tensor that did not fit; empty where all did.
    """

    def __init__(self, module: nn.Module):
        """`module` is a model at its dense size, or an averaged copy."""
        self.passed = ""

        def before_load(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
            own: Mapping[str, Any] = module.state_dict(prefix=prefix)
            for name in [name for name in state if name.startswith(prefix) and name not in own]:
                self.passed = name
                del state[name]
            for name, tensor in own.items():
                if name not in state or state[name].shape != tensor.shape:
                    self.passed, state[name] = name, tensor

        self._handle = module.register_load_state_dict_pre_hook(before_load)

    def stop(self) -> None:
        """Weights that do not fit are refused again."""
        self._handle.remove()

"""What a run does in every step, and when weights are loaded, done by hooks where the loop is another library's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..attach import Attached
from ..errors import ConfigError
from ..methods import Method
from ..resize import resized


def check_fits(method: Method) -> None:
    """Refuse a method that changes what such a loop keeps to itself.

    Raises:
        ConfigError: the method changes the batch, or throws epochs away.
    """
    what = "changes the batch" if method.mini_batch is not None else ""
    what = "throws the epochs of a search away" if method.searches and not method.recycle else what
    if what:
        raise ConfigError(
            f"this method {what}, which the trainer's own loop does not allow",
            where=type(method).__name__,
            expected="a method that leaves batches and epochs as they are",
            todo="Leave out DynamicBatch and recycle=False, or write the loop yourself with morphogen.attach",
        )


def follow_steps(run: Attached, optimizer: Optimizer) -> Callable[[], None]:
    """Begin a step before every forward pass in training, and end it after the optimizer's.

    The model's images (its first tensor with four axes) are brought to the resolution that runs, in evaluation too. A
    step that gradients are accumulated for, or that a GradScaler skips, is begun several times and ends once.

    Args:
        run: whose model is called by somebody else.
        optimizer: PyTorch's own, not a wrapper.

    Returns:
        What takes the hooks out again.
    """

    def before_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def of_size(images: torch.Tensor) -> torch.Tensor | None:
            if model.training:
                return run.begin_step(images)
            resolution = run.network.current.resolution
            return images if resolution is None else resized(images, resolution, run.method.resizing)

        every = [*enumerate(args), *kwargs.items()]
        key = next((k for k, value in every if isinstance(value, torch.Tensor) and value.ndim == 4), None)
        if isinstance(key, int):
            return (*args[:key], of_size(args[key]), *args[key + 1 :]), kwargs
        if key is not None:
            return args, kwargs | {key: of_size(kwargs[key])}
        if model.training:
            run.begin_step()
        return args, kwargs

    # Functions of their own: a copy of the model, such as a momentum network, must not copy the run with a method of it.
    handles = [
        run.network.model.register_forward_pre_hook(before_forward, prepend=True, with_kwargs=True),
        optimizer.register_step_post_hook(lambda *_: run.end_step()),
    ]

    def stop() -> None:
        for handle in handles:
            handle.remove()

    return stop


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

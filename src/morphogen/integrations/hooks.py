"""What a run does in every step, and when weights are loaded, done by hooks where the loop is another library's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ..attach import Attached
from ..errors import ConfigError
from ..fake import Example
from ..methods import Method
from ..morph.commit import Receipt
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


def moved(example: Example, device: torch.device) -> Example:
    """An example on another device."""
    return tree_map(lambda value: value.to(device) if isinstance(value, torch.Tensor) else value, example)


class Steps:
    """Begins a step before every forward pass in training, and ends it after the optimizer's.

    The model's images (its first tensor with four axes) are brought to the resolution that runs, in evaluation too. A
    step that gradients are accumulated for, or that a GradScaler skips, is begun several times and ends once.
    """

    def __init__(self, run: Attached, optimizer: Optimizer):
        """
        Args:
            run: whose model is called by somebody else.
            optimizer: PyTorch's own, not a wrapper.
        """
        self._run, self._measuring = run, False

        # Functions, which are not copied along where the model is: a momentum network is no run of its own.
        def before_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return None if self._measuring else self._sized(model.training, args, kwargs)

        def after_step(*_: Any) -> None:
            run.end_step()

        self._handles = [
            run.network.model.register_forward_pre_hook(before_forward, prepend=True, with_kwargs=True),
            optimizer.register_step_post_hook(after_step),
        ]

    def begin_epoch(self, epoch: int) -> Receipt | None:
        """That of the run, which may compare candidates, on images of their sizes."""
        self._measuring = True
        try:
            return self._run.begin_epoch(epoch)
        finally:
            self._measuring = False

    def stop(self) -> None:
        """The model and its optimizer are left alone again."""
        for handle in self._handles:
            handle.remove()

    def _sized(self, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        every = [*enumerate(args), *kwargs.items()]
        key = next((k for k, value in every if isinstance(value, torch.Tensor) and value.ndim == 4), None)
        images = None if key is None else args[key] if isinstance(key, int) else kwargs[key]
        resolution = self._run.network.current.resolution
        if training:
            images = self._run.begin_step(images)
        elif images is not None and resolution is not None:
            images = resized(images, resolution, self._run.method.resizing)
        if isinstance(key, int):
            return (*args[:key], images, *args[key + 1 :]), kwargs
        return args, kwargs if key is None else kwargs | {key: images}


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

"""The dense model without memory and arithmetic: PyTorch's fake tensors, for trials, shapes and FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..machine.alone import READING
from ..machine.private import Constants, FakeTensorMode, as_parameter, is_fake, new_fake, tree_map
from ..machine.randomness import own_random
from .double import double, named_tensors
from .images import Images, Path, exchanged, find_images, inputs_in
from .picked import AllPicked
from .program import silence, uncompiled
from .rewritten import as_properties
from .tensor_data import DataSeen

Example = torch.Tensor | tuple[Any, ...] | dict[str, Any]
"""What to call the model with: one tensor, positional arguments, or keyword arguments."""


class FakeModel:
    """A double of the dense model whose tensors have shapes and nothing else.

    Tensors that are neither parameters nor buffers keep their values: the forward pass may read numbers in them.

    Attributes:
        dense: the double, in evaluation mode.
        mode: PyTorch's mode in which its tensors live.
        device: where the model is (its first parameter).
        hooks: whether the double keeps the hooks around the model's forward pass, because it is nothing without them.
        picked: where masks pick every position, because the model cannot be read otherwise; else None.
        images: the example's images and their sizes, see `find_images`.
    """

    def __init__(self, model: nn.Module, example: Example, images: Images = None, *, hooks: bool = False):
        """The model is only read."""
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.hooks = hooks
        self.picked: AllPicked | None = None
        own = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
        self.dense = self.copy(model, lambda t: self._fake(t) if id(t) in own else _plain(t))
        as_properties(self.dense)
        make_ready(self.dense, training=False)
        self._example = tree_map(self._fake, as_call(example))
        self.device = next((t.device for t in self.dense.parameters()), torch.device("cpu"))
        args, kwargs = self._example
        self.images = find_images(args, kwargs, images)

    @property
    def image_channels(self) -> int | None:
        """Channels of the example's images; None where it has none."""
        tensors = dict(inputs_in(*self._example))
        return next((tensors[path].shape[1] for path in self.images), None)

    @property
    def batch(self) -> int | None:
        """How many images the example has; None where it has none."""
        tensors = dict(inputs_in(*self._example))
        return next((tensors[path].shape[0] for path in self.images), None)

    def sizes(self, resolution: tuple[int, int]) -> dict[Path, tuple[int, int]]:
        """The size of each image where the largest has this resolution: the others follow in proportion."""
        dense = next(iter(self.images.values()), resolution)
        return {
            path: (max(1, round(h * resolution[0] / dense[0])), max(1, round(w * resolution[1] / dense[1])))
            for path, (h, w) in self.images.items()
        }

    def reshaped(self, shape_of: Callable[[str, torch.Tensor], tuple[int, ...]]) -> nn.Module:
        """A copy of the dense model with tensors of other shapes, by name."""
        names = {id(tensor): name for name, tensor in named_tensors(self.dense).items()}

        def resized(tensor: torch.Tensor) -> torch.Tensor:
            shape = shape_of(names[id(tensor)], tensor) if id(tensor) in names else tuple(tensor.shape)
            if not is_fake(tensor):
                return _plain(tensor) if shape == tuple(tensor.shape) else tensor.new_zeros(shape)
            return _as_kind_of(tensor, new_fake(tensor, shape, self.mode))

        return self.copy(self.dense, resized)

    def double(self, *, training: bool) -> nn.Module:
        """A copy of the dense model in the given mode, for one trial."""
        model = self.reshaped(lambda name, tensor: tuple(tensor.shape))
        make_ready(model, training=training)
        return model

    def blank(self) -> nn.Module:
        """A copy of the dense model with ordinary tensors on the CPU that hold nothing; memory is not touched."""
        return self.copy(
            self.dense,
            lambda t: (
                _as_kind_of(t, torch.empty(t.shape, dtype=t.dtype, device="cpu")) if is_fake(t) else _plain(t).cpu()
            ),
        )

    def empty(self, tensor: torch.Tensor) -> torch.Tensor:
        """A fake tensor of the same shape and kind, where the model is."""
        with self.mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)

    def inputs(
        self, resolution: tuple[int, int] | None, batch: int | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example as fake arguments, its tensors at the batch size and resolution given."""

        args, kwargs = self._example
        sizes = {} if resolution is None else self.sizes(resolution)
        new: dict[Path, torch.Tensor] = {}
        with self.mode:
            for path, value in inputs_in(args, kwargs):
                if value.ndim:
                    shape = [batch or value.shape[0], *value.shape[1:]]
                    new[path] = value.new_empty([*shape[:-2], *sizes[path]] if path in sizes else shape)
        return tuple(exchanged(list(args), new)), exchanged(kwargs, new)

    def run(self, model: nn.Module, resolution: tuple[int, int] | None, batch: int | None = None) -> Any:
        """Call a fake model; raises whatever its forward raises."""
        args, kwargs = self.inputs(resolution, batch)
        with self.running():
            return model(*args, **kwargs)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Where a fake model is called."""
        with READING, own_random(self.device), self.mode, Constants(), silence(), uncompiled(), self.reading():
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Where the code of the model is run to be read: in doubles and exports."""
        with DataSeen(), nullcontext() if self.picked is None else self.picked:
            yield

    def _fake(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return _as_kind_of(value, self.mode.from_tensor(value.detach()))

    def copy(self, model: nn.Module, replace: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
        """A deep copy with every tensor replaced, its hooks where the model needs them."""
        return double(model, replace, hooks=self.hooks)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """What a double has in the place of a plain tensor; in large ones `Constants` writes nothing."""
    return tensor.detach() if tensor.numel() > Constants.WRITABLE else tensor.detach().clone()


def _as_kind_of(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """New data as a parameter where a tensor is one."""
    if not isinstance(tensor, nn.Parameter):
        return data
    return (as_parameter if is_fake(data) else nn.Parameter)(data, tensor.requires_grad)


def has_own_arithmetic(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a class that computes in its own way: sharded, or quantised."""
    kind: Any = type(tensor)
    ordinary: Any = torch.Tensor
    return kind.__torch_dispatch__ is not ordinary.__torch_dispatch__


def tensor_named(model: nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer of that name; raises AttributeError where there is none."""
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


def as_call(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an example, such that autograd can use its tensors."""
    example = tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) and x.is_inference() else x, example)
    if isinstance(example, dict):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def at_least_two(value: Any) -> Any:
    """A batch of one made two: batch norm refuses single values in training."""
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


def drop_caches(model: nn.Module) -> None:
    """Have modules that keep what they computed from their weights (LeViT's attention biases) drop it.

    They do so when training begins, in a `train` of their own, which alone knows what they keep; the same is due when
    weights change size. Modes, and which parameters are frozen, are then what they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for module, _ in modes:
        if type(module).train is not nn.Module.train:
            module.train()
    for module, training in modes:
        module.training = training
    for parameter, wanted in trainable:
        parameter.requires_grad = wanted


def make_ready(model: nn.Module, *, training: bool) -> None:
    """Bring a double into the given mode, without what the model's own keeps from other calls."""
    drop_caches(model)
    for module in model.modules():
        module.training = training

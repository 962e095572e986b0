"""The dense network, and what of it is alive now."""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from .errors import SubNetworkError
from .program import silence
from .subnet import BlockStack, ChannelGroup, PinnedAxis, Structure, SubNetwork

Example = torch.Tensor | tuple[Any, ...] | dict[str, Any]
"""What to call the model with: one tensor, positional arguments, or keyword arguments."""


class Network:
    """A model, the structure of the dense network it is (part of), and the sub-network that is alive.

    Made by `morphogen.trace`; changed by `morphogen.morph` alone.

    Attributes:
        model: the user's module, the one that trains.
        structure: the dense network as plain data.
        dense: the sub-network in which everything is alive.
        current: the sub-network the model is now.
        fake: the dense model on fake tensors (no memory, no arithmetic), for trying sub-networks out.
    """

    def __init__(self, model: nn.Module, structure: Structure, example: Example):
        self.model = model
        self.structure = structure
        self.dense = SubNetwork(
            channels={group.name: tuple(range(group.size)) for group in structure.groups},
            resolution=structure.resolution,
        )
        self.current = self.dense
        self.fake = FakeModel(model, example)
        self.fits = {self.dense}
        """Sub-networks that have been tried out."""

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The channel groups, in the model's order."""
        return self.structure.groups

    @property
    def pinned(self) -> tuple[PinnedAxis, ...]:
        """Tensor axes that stay whole, and why."""
        return self.structure.pinned

    @property
    def stacks(self) -> tuple[BlockStack, ...]:
        """The block stacks, in the model's order."""
        return self.structure.stacks

    def subnetwork(
        self,
        width: float | Mapping[str, float] | None = None,
        *,
        depth: float | None = None,
        resolution: int | tuple[int, int] | None = None,
        alive: Mapping[str, Sequence[int]] | None = None,
        multiple_of: int = 1,
    ) -> SubNetwork:
        """Describe a part of the dense network; what is not mentioned is whole. Nothing is changed.

        Args:
            width: share alpha of the channels to keep, in (0, 1], for all groups or by group name. The first
                floor(alpha C) channels of each group stay (Network Expansion, section 3.2).
            depth: share of each block stack to keep.
            resolution: input size in pixels, one number for square images.
            alive: indices of the units to keep, by group name; overrides `width` for these groups.
            multiple_of: round channel counts to the nearest multiple, as hardware likes them; a group
                smaller than one multiple stays whole.

        Raises:
            SubNetworkError: a share outside (0, 1], an unknown group, an index that does not exist.
        """
        if depth is not None and not self.stacks:
            raise SubNetworkError("depth cannot change: no block stacks were found in this model")
        shares = width if isinstance(width, Mapping) else {g.name: 1.0 if width is None else width for g in self.groups}
        for name, share in shares.items():
            if not isinstance(share, Real) or not 0 < share <= 1:
                raise SubNetworkError("width out of range", where=name, expected="0 < width <= 1", found=repr(share))
        if not isinstance(multiple_of, int) or multiple_of < 1:
            raise SubNetworkError("multiple_of out of range", expected="a number from 1", found=repr(multiple_of))
        self._check_names(self.groups, [*shares, *(alive or {})])
        channels = {
            group.name: tuple(range(_units(group, float(shares.get(group.name, 1.0)), multiple_of)))
            for group in self.groups
        }
        channels |= {name: _indices(name, units) for name, units in (alive or {}).items()}
        if resolution is None:
            size = self.structure.resolution
        elif self.structure.resolution is None:
            raise SubNetworkError("resolution cannot change: the example is not a batch of images (N, C, H, W)")
        else:
            size = resolution if isinstance(resolution, tuple) else (resolution, resolution)
        subnetwork = SubNetwork(channels, dict(self.dense.blocks), size)
        self.check(subnetwork)
        return subnetwork

    def check(self, subnetwork: SubNetwork) -> None:
        """Raise SubNetworkError unless `subnetwork` is a part of this dense network."""
        self._check_names(self.groups, subnetwork.channels)
        self._check_names(self.stacks, subnetwork.blocks)
        for group in self.groups:
            units = subnetwork.channels.get(group.name)
            if not units:
                raise SubNetworkError("a group must keep at least one unit", where=group.name)
            if list(units) != sorted(set(units)) or units[0] < 0 or units[-1] >= group.size:
                raise SubNetworkError(
                    "bad unit indices",
                    where=group.name,
                    expected=f"sorted, each once, from 0 to {group.size - 1}",
                    found=f"{units}",
                )
        size = subnetwork.resolution
        if (size is None) != (self.structure.resolution is None):
            raise SubNetworkError("bad resolution", expected=f"as {self.structure.resolution}", found=f"{size}")
        if size is not None and not (len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
            raise SubNetworkError("bad resolution", expected="height and width, at least 1 pixel", found=f"{size}")

    @staticmethod
    def _check_names(known: Iterable[ChannelGroup | BlockStack], names: Iterable[str]) -> None:
        there = {entry.name for entry in known}
        for name in names:
            if name not in there:
                raise SubNetworkError(
                    "no such channel group or block stack",
                    where=name,
                    expected="a name in net.groups or net.stacks",
                    todo="`morphogen inspect` lists them",
                )


def _indices(name: str, units: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(sorted(operator.index(unit) for unit in units))
    except TypeError:
        raise SubNetworkError("bad unit indices", where=name, expected="whole numbers", found=repr(units)) from None


def _units(group: ChannelGroup, share: float, multiple_of: int) -> int:
    """Units to keep: floor(share C), or the nearest multiple of `multiple_of` channels."""
    if multiple_of == 1:
        return max(1, int(share * group.size + 1e-9))
    step = max(1, -(-multiple_of // group.unit))  # units in one multiple of channels
    if step >= group.size:
        return group.size
    return min(group.size, max(step, int(share * group.size / step + 0.5) * step))


class FakeModel:
    """A copy of the dense model whose tensors have shapes and nothing else (PyTorch's fake tensors)."""

    def __init__(self, model: nn.Module, example: Example):
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with quiet(model, training=False):
            self._dense = self._copy(model, self._fake)
        self._example = tree_map(self._fake, as_call(example))

    def subnetwork(self, structure: Structure, target: SubNetwork) -> nn.Module:
        """The sub-network on fake tensors: for trials, shapes and FLOPs."""
        alive = structure.alive_mask(target)
        shapes = {
            id(tensor_named(self._dense, name)): layout.alive_shape(alive) for name, layout in structure.tensors.items()
        }

        def resized(tensor: torch.Tensor) -> torch.Tensor:
            with self._mode:
                data = tensor.detach().new_empty(shapes.get(id(tensor), tuple(tensor.shape)))
            return _as_kind_of(tensor, data)

        model = self._copy(self._dense, resized)
        set_attributes(model, structure, alive)
        return model

    def inputs(
        self, resolution: tuple[int, int] | None, batch: int | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example as fake arguments, its tensors at the batch size and resolution given."""

        def resize(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not value.ndim:
                return value
            shape = list(value.shape)
            shape[0] = batch or shape[0]
            if resolution is not None and value.ndim == 4:
                shape[2:] = resolution
            return value.new_empty(shape)

        with self._mode:
            return tree_map(resize, self._example)

    def run(self, model: nn.Module, resolution: tuple[int, int] | None, batch: int | None = None) -> Any:
        """Call a fake model; raises whatever its forward raises."""
        args, kwargs = self.inputs(resolution, batch)
        with self._mode, silence():
            return model(*args, **kwargs)

    def _fake(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return _as_kind_of(value, self._mode.from_tensor(value.detach()))

    @staticmethod
    def _copy(model: nn.Module, replace: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
        # `deepcopy` takes the tensors from its memo, so that none is ever copied.
        tensors = [*model.parameters(), *model.buffers()]
        return copy.deepcopy(model, {id(tensor): replace(tensor) for tensor in tensors})


def _as_kind_of(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def tensor_named(model: nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer of that name; raises AttributeError where there is none."""
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


def set_attributes(model: nn.Module, structure: Structure, alive: torch.Tensor) -> None:
    """Bring the sizes that modules keep to those of a sub-network."""
    for layout in structure.attributes:
        setattr(model.get_submodule(layout.path), layout.name, layout.value(alive))


def as_call(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an example."""
    if isinstance(example, dict):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def at_least_two(value: Any) -> Any:
    """A batch of one made two: batch norm refuses single values in training."""
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


@contextmanager
def quiet(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The model in the given mode and without hooks.

    Afterwards every attribute of every module is what it was: modes, hooks, and whatever the forward pass
    stored on the modules (containers that it changed in place excepted).
    """
    kept = [(module, dict(module.__dict__)) for module in model.modules()]
    try:
        for module, _ in kept:
            module.training = training
            module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for module, attributes in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)

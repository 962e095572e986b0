"""The dense network, and what of it is alive now."""

from __future__ import annotations

import copy
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map

from .errors import SubNetworkError
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
        self.fits: set[SubNetwork] = {self.dense}
        """Sub-networks already tried on the fake model."""

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
            if not isinstance(share, (int, float)) or not 0 < share <= 1:
                raise SubNetworkError("width out of range", where=name, expected="0 < width <= 1", found=f"{share}")
        if multiple_of < 1:
            raise SubNetworkError("multiple_of out of range", expected="at least 1", found=f"{multiple_of}")
        alive = alive or {}
        self._check_names([*shares, *alive])
        channels = {
            group.name: tuple(sorted(alive[group.name]))
            if group.name in alive
            else tuple(range(_units(group, shares.get(group.name, 1.0), multiple_of)))
            for group in self.groups
        }
        if resolution is not None and self.structure.resolution is None:
            raise SubNetworkError("resolution cannot change: the example is not a batch of images (N, C, H, W)")
        size = (resolution, resolution) if isinstance(resolution, int) else resolution
        subnetwork = SubNetwork(channels, {}, self.structure.resolution if size is None else size)
        self.check(subnetwork)
        return subnetwork

    def check(self, subnetwork: SubNetwork) -> None:
        """Raise SubNetworkError unless `subnetwork` is a part of this dense network."""
        self._check_names(subnetwork.channels)
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
        if subnetwork.resolution is not None and min(subnetwork.resolution) < 1:
            raise SubNetworkError(
                "resolution out of range", expected="at least 1 pixel", found=f"{subnetwork.resolution}"
            )

    def _check_names(self, names: Sequence[str] | Mapping[str, Any]) -> None:
        known = {group.name for group in self.groups}
        for name in names:
            if name not in known:
                raise SubNetworkError(
                    "no such channel group",
                    where=name,
                    expected="one of net.groups",
                    todo="`morphogen inspect` lists them",
                )


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
            self._dense = self._copy(model)
        self._example = tree_map(self._fake, as_call(example))

    def copy(self) -> nn.Module:
        """A dense fake model to edit."""
        return self._copy(self._dense)

    def _copy(self, model: nn.Module) -> nn.Module:
        # `deepcopy` takes the tensors from its memo, so that none is ever copied.
        tensors = [*model.parameters(), *model.buffers()]
        return copy.deepcopy(model, {id(tensor): self._fake(tensor) for tensor in tensors})

    def _fake(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        data = value.detach()
        fake = data if isinstance(data, FakeTensor) else self._mode.from_tensor(data)
        return nn.Parameter(fake, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else fake

    def run(self, model: nn.Module, resolution: tuple[int, int] | None, batch: int | None = None) -> Any:
        """Call a fake model; tensors of the example take the batch size and resolution given.

        Raises whatever the model's forward raises.
        """

        def resize(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not value.ndim:
                return value
            shape = list(value.shape)
            shape[0] = batch or shape[0]
            if resolution is not None and value.ndim == 4:
                shape[2:] = resolution
            return value.new_empty(shape)

        with self._mode, silence():
            args, kwargs = tree_map(resize, self._example)
            return model(*args, **kwargs)


def as_call(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an example."""
    if isinstance(example, dict):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


@contextmanager
def quiet(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The model in the given mode and without hooks; both as they were afterwards, module by module."""
    kept = [(m, m.training, m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    try:
        for module, *_ in kept:
            module.training = training
            module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for module, mode, hooks, pre_hooks in kept:
            module.training, module._forward_hooks, module._forward_pre_hooks = mode, hooks, pre_hooks


@contextmanager
def silence() -> Iterator[None]:
    """Keep PyTorch's export and fake tensors from printing what the caller gets as an exception anyway."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._subclasses.fake_tensor")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

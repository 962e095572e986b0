"""Models that are alike are read once: a trace takes a quarter of a second, and a test of a run makes several.

What is shared is the structure, the double on fake tensors and what was found out on it, what was found at other
resolutions, the sub-networks that were tried out, and the memory of steps. Models are alike where nothing but the
values of their tensors differs: the same code, the same plain attributes, tensors of the same shapes and kinds tied
in the same places, the same kind of example. If a module keeps anything else (a hook, a tensor that is no buffer,
an object), its model is read anew.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from operator import call
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

import morphogen
from morphogen.cost.memory import StepMemory
from morphogen.dense.grid import Grids

reading = importlib.import_module("morphogen.graph.trace")
_known: dict[Any, tuple[morphogen.Network, dict, list[warnings.WarningMessage]]] = {}
_modules: list[Any] = [0, []]
HOOKS = tuple(name for name in vars(nn.Module()) if "hooks" in name)
KEPT = {*HOOKS, "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}


class Unlike(Exception):
    """A model of which it cannot be said what it is like."""


class KnownGrids(Grids):
    """Looks up what another network of the same structure has found; knows itself what it was asked for alone."""

    def __init__(self, fake, dense, shared: dict):
        super().__init__(fake, dense)
        self.shared = shared

    def at(self, resolution):
        if resolution in self.shared and resolution not in self._found:
            self._found[resolution] = self.shared[resolution]
        try:
            return super().at(resolution)
        finally:
            if resolution in self._found:
                self.shared[resolution] = self._found[resolution]


def shared_trace(original, model, example, *, exclude=(), outputs=None, images=None) -> morphogen.Network:
    """`original`, which reads a model for `trace` and `attach`, done once for all models that are alike."""
    exclude = tuple(exclude)
    try:
        key = likeness(model, example, exclude), plain(outputs), plain(images)
    except Unlike:
        return original(model, example, exclude=exclude, outputs=outputs, images=images)
    if key not in _known:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            first = original(model, example, exclude=exclude, outputs=outputs, images=images)
        _known[key] = first, {}, caught
    first, grids, caught = _known[key]
    for each in caught:  # for every test to see
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    network = morphogen.Network(model, first.structure, first.fake)
    network.grids = KnownGrids(first.fake, first.structure.resolution, grids)
    network.fits, network.answers = first.fits, first.answers
    return network


def shared_memory(original, memory: StepMemory, subnetwork, batch_size: int) -> int:
    """`original`, which follows a step on fake tensors, done once for optimizers that are alike, too."""
    about = [(type(each), plain([[*group.items()] for group in groups])) for each, groups in settings_of(memory)]
    key = "memory", subnetwork, batch_size, memory.copies, memory.autocast, tuple(about)
    answers = memory.network.answers
    if key not in answers:
        answers[key] = original(memory, subnetwork, batch_size)
    return answers[key]


def settings_of(memory: StepMemory) -> Iterator[tuple[torch.optim.Optimizer, list[dict[str, Any]]]]:
    """Each optimizer, and its groups: names in the place of parameters, and no learning rates, which take no memory."""
    for optimizer, names in memory._held:
        groups = [{**group, "params": held} for group, held in zip(optimizer.param_groups, names, strict=True)]
        for group in groups:
            for rate in ("lr", "initial_lr"):
                if not isinstance(group.get(rate), torch.Tensor):
                    group.pop(rate, None)
        yield optimizer, groups


def likeness(model: nn.Module, example: Any, exclude: tuple[str, ...] = ()) -> Any:
    """Equal for models that are read alike.

    Raises:
        Unlike: a module keeps something of which that cannot be said.
    """
    if not isinstance(model, nn.Module) or torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled():
        raise Unlike
    places: dict[int, int] = {}
    modules = []
    for path, module in model.named_modules(remove_duplicate=False):
        first = id(module) not in places
        number = places.setdefault(id(module), len(places))
        if not first:
            modules.append((path, number))
            continue
        if any(getattr(module, name) for name in HOOKS) or not isinstance(module, nn.Module):
            raise Unlike
        own = tuple((name, plain(value)) for name, value in vars(module).items() if name not in KEPT)
        tensors = tuple(
            (name, tensor is None or (places.setdefault(id(tensor), len(places)), *kind(tensor, places)))
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]
        )
        kept = frozenset(module._non_persistent_buffers_set)
        modules.append((path, number, type(module), type(module).forward, own, tensors, kept))
    leaves, spec = tree_flatten(example)
    given = tuple(kind(leaf, {}) if isinstance(leaf, torch.Tensor) else plain(leaf) for leaf in leaves)
    return tuple(modules), str(spec), given, exclude


def kind(tensor: torch.Tensor, places: dict[int, int]) -> tuple[Any, ...]:
    """All of a tensor but its values; tensors in each other's memory are seen."""
    if (
        type(tensor) not in (torch.Tensor, nn.Parameter)
        or tensor.device.type != "cpu"
        or tensor.layout != torch.strided
    ):
        raise Unlike
    memory = tensor.untyped_storage().data_ptr()
    shared = places.setdefault(-memory, len(places)) if memory else None
    about = tensor.dtype, tensor.requires_grad, tensor.is_leaf, tensor.storage_offset(), shared
    return type(tensor), tuple(tensor.shape), tensor.stride(), *about


def plain(value: Any) -> Any:
    """A value as something that can be compared and never changes."""
    if isinstance(value, (type, torch.dtype, torch.device, torch.memory_format, BuiltinFunctionType)):
        return value
    if isinstance(value, (bool, int, float, str, bytes)) or value is None:
        return type(value), value
    if isinstance(value, FunctionType) and not value.__closure__:
        return value
    if isinstance(value, functools.partial):
        return "partial", plain(value.func), plain(value.args), plain(value.keywords)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(plain, value))
    if isinstance(value, dict):
        return type(value), tuple((plain(key), plain(each)) for key, each in value.items())
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(plain, value))
    raise Unlike


def modules() -> list[Any]:
    """Morphogen's own that have been imported; looked up anew when others have come."""
    if _modules[0] != len(sys.modules):
        own = [module for name, module in [*sys.modules.items()] if name.partition(".")[0] == "morphogen"]
        _modules[:] = len(sys.modules), own
    return _modules[1]


@contextmanager
def traced_once() -> Iterator[None]:
    """While this holds, `trace` and `attach` read models that are alike once, whoever calls them."""
    original = reading.read
    active = True

    @functools.wraps(original)
    def read(model, example, exclude=(), outputs=None, images=None):
        known = shared_trace if active else call  # a module that was first imported meanwhile has kept this function
        return known(original, model, example, exclude=exclude, outputs=outputs, images=images)

    follow = StepMemory._followed

    @functools.wraps(follow)
    def followed(self, subnetwork, batch_size):
        try:
            return shared_memory(follow, self, subnetwork, batch_size)
        except Unlike:
            return follow(self, subnetwork, batch_size)

    holders = [module for module in modules() if vars(module).get("read") is original]
    for module in holders:
        module.read = read
    StepMemory._followed = followed
    try:
        yield
    finally:
        active = False
        StepMemory._followed = follow
        for module in holders:
            module.read = original

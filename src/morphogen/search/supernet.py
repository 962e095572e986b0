"""The elastic supernet: one network that runs as any of its parts, in place and on one set of weights.

AutoProg, section 4.3. Nothing is copied and the module tree stays whole, so the optimizer, averaged copies, hooks,
clipping and `state_dict` see one and the same network whatever part of it runs. A block that is off hands its input on;
tensors that are smaller in a part (fewer channels, another token grid) are computed from the whole ones in the forward
pass, by the arithmetic of the morph, so that gradients reach the whole ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ..dense.bypass import Bypass
from ..dense.fake import tensor_named
from ..dense.kept import keep, kept
from ..dense.network import Network, attributes_in
from ..dense.subnet import DropPath, SubNetwork, contains, within
from ..errors import ConfigError, SubNetworkError
from ..machine.hook import Hook
from ..machine.private import in_backward, more_compilations
from ..morph.drop_path import rates_in
from ..morph.tensors import TensorMap, map_tensors


@dataclass(frozen=True)
class _Swap:
    """A tensor that is another one in a part of the network: computed by a map, or (a buffer) simply `value`."""

    module: nn.Module
    leaf: str
    whole: torch.Tensor | None
    map: TensorMap | None
    value: torch.Tensor | None

    def __call__(self) -> torch.Tensor | None:
        if self.map is None or self.whole is None:
            return self.value
        return self.map.regrid(self.map.survivors_of_old(self.whole))

    @property
    def place(self) -> dict[str, Any]:
        return self.module._parameters if self.leaf in self.module._parameters else self.module._buffers


@dataclass(frozen=True)
class _Part:
    """All that has to be set for one candidate to run."""

    off: Sequence[tuple[nn.Module, Callable[..., Any], dict[str, Any]]]
    """Blocks, what they do instead, and the `forward` that someone has given the very block."""
    attributes: Sequence[tuple[nn.Module, str, Any]]
    rates: Sequence[tuple[nn.Module, DropPath]]
    swaps: Sequence[_Swap]


class ElasticSupernet:
    """A network's current sub-network, able to run as any of the candidates.

    `run_as` takes effect for every call of the model until the next one. Tensors of another size are put in their
    places for the time of the forward pass alone, through hooks on the model. Where another method of the model than
    its `forward` is called, put `with supernet.swapped():` around it. Under `DistributedDataParallel` parameters of
    blocks that are off get no gradient: without `attach`, which sees to it, set `find_unused_parameters=True`.
    Activation checkpointing computes anew when the whole tensors are back: a checkpointed module with tensors of
    another size is refused.

    Attributes:
        network: `network.current` is the supernet; it must not be morphed while this one is open.
        candidates: parts of it.

    Raises:
        SubNetworkError: a candidate is no part of the current sub-network.
    """

    def __init__(self, network: Network, candidates: Sequence[SubNetwork]):
        self.network, self.candidates = network, tuple(candidates)
        for candidate in candidates:
            network.check(candidate)
            network.grids.at(candidate.resolution)  # what follows the resolution is known for all before any is read
            if not contains(network.current, candidate):
                raise SubNetworkError(
                    "a candidate of an elastic supernet must be a part of it",
                    expected=f"a part of {network.current.to_json()}",
                    found=candidate.to_json(),
                )
        self._whole = _part(network, network.current)
        self._parts = [_part(network, candidate) for candidate in candidates]
        self._now = self._whole
        self._inside = 0
        model = network.model
        # A compiled model is compiled for each candidate, once to train and once to be compared without gradients, and
        # for the supernet and what is extracted, to train and to be tested; the hooks not at all. PyTorch gives up
        # after 8, and then for good.
        self._room = 2 * len(self.candidates) + 4
        more_compilations(self._room)
        swapped = {id(swap.module): swap.module for part in self._parts for swap in part.swaps}
        hooks: list[Any] = [Hook(torch.compiler.disable(hook), self) for hook in (self._enter, self._leave)]
        self._hooks = [
            model.register_forward_pre_hook(hooks[0]),  # behind the run's, which says what runs
            model.register_forward_hook(hooks[1], always_call=True),
            *(each.register_forward_pre_hook(cast(Any, Hook(self._check, self))) for each in swapped.values()),
        ]

    def run_as(self, number: int | None) -> None:
        """Run as a candidate from now on; None is the whole supernet."""
        if self._inside:  # an interrupt has left the forward pass without its hook
            self._inside = 1
            self._leave()
        for module, _, own in self._now.off:
            module.__dict__.pop("forward", None)
            module.__dict__.update(own)
        self._now = self._whole if number is None else self._parts[number]
        for module, hand_on, _ in self._now.off:
            module.__dict__["forward"] = hand_on
        for module, name, value in self._now.attributes:
            if kept(module, name) != value:
                keep(module, name, value)
        scale = self.network.drop_path_scale
        for module, drop in self._now.rates:
            setattr(module, drop.attribute, scale * drop.rate)

    def close(self) -> None:
        """The whole supernet again, an ordinary network."""
        self.run_as(None)
        for hook in self._hooks:
            hook.remove()
        more_compilations(-self._room)
        self._room = 0

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The tensors of the part that runs are in their places."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self, *_: Any) -> None:
        self._inside += 1
        if self._inside > 1:
            return
        for swap in self._now.swaps:
            swap.place[swap.leaf] = swap()

    def _check(self, module: nn.Module, *_: Any) -> None:
        if torch.compiler.is_compiling() or self._inside or not any(s.module is module for s in self._now.swaps):
            return
        raise ConfigError(
            "a module of an elastic supernet runs outside of the model's forward pass, where it has its whole tensors",
            where=type(module).__name__,
            expected="no activation checkpointing of it in a search"
            if in_backward()
            else "with run.swapped(): around a call of another method than the model's forward",
        )

    def _leave(self, *_: Any) -> None:
        self._inside -= 1
        if self._inside:
            return
        for swap in self._now.swaps:
            place, whole = swap.place, swap.whole
            now = place[swap.leaf]
            place[swap.leaf] = whole
            if swap.map is not None and place is swap.module._buffers and whole is not None and now is not None:
                _write_back(swap.map, now, whole)


def _write_back(change: TensorMap, part: torch.Tensor, whole: torch.Tensor) -> None:
    """Running statistics of fewer channels go back to where they came from."""
    axis = change.axes[0]
    if axis is not None and not change.regrids:
        with torch.no_grad():
            whole[axis.source.to(whole.device)] = part


def _part(network: Network, candidate: SubNetwork) -> _Part:
    structure, model, current = network.structure, network.model, network.current
    absent = frozenset(structure.absent(candidate))
    already = frozenset(structure.absent(current))
    off = []
    for stack in network.stacks:
        for path, hands_on in stack.places:
            if path in absent and path not in already:
                module = model.get_submodule(path)
                own = {k: v for k, v in module.__dict__.items() if k == "forward"}
                off.append((module, Bypass(hands_on).forward, own))
    # What a candidate leaves alone has to be set all the same: the one before it may have changed it.
    attributes = [
        (model.get_submodule(path), name, value)
        for path, name, value in attributes_in(network, candidate)
        if not within(path, already)
    ]
    rates = [(model.get_submodule(drop.path), drop) for drop in rates_in(network, candidate)]
    return _Part(off, attributes, rates, _swaps(network, current, candidate))


def _swaps(network: Network, current: SubNetwork, candidate: SubNetwork) -> list[_Swap]:
    model = network.model
    absent = frozenset(network.structure.absent(candidate))
    swaps = []
    for name, change in map_tensors(network, current, candidate).items():
        path, _, leaf = name.rpartition(".")
        swaps.append(_Swap(model.get_submodule(path), leaf, tensor_named(model, name), change, None))
    if candidate.resolution != current.resolution:
        device = next((parameter.device for parameter in model.parameters()), None)
        buffers: Mapping[str, torch.Tensor | None] = network.grids.buffers(candidate.resolution)
        for name, value in buffers.items():
            if not within(name, absent):
                path, _, leaf = name.rpartition(".")
                module = model.get_submodule(path)
                whole = module._buffers[leaf]
                same = whole.dtype if whole is not None and value is not None and value.is_floating_point() else None
                moved = None if value is None else value.to(device=device, dtype=same, copy=True)
                swaps.append(_Swap(module, leaf, whole, None, moved))
    return swaps

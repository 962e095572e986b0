"""The dense network, and what of it is alive now."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import CheckpointError, MorphError, SubNetworkError, first_line
from ..machine.private import tree_leaves
from .bypass import take_out
from .depth import interpolated, originals
from .double import plain_tensors
from .extent import Extent, extent
from .fake import FakeModel, make_ready
from .grid import Grids, Resolution
from .kept import keep, kept
from .program import rule_name
from .subnet import BlockStack, ChannelGroup, PinnedAxis, Structure, SubNetwork, within

Shapes = tuple[tuple[int, ...] | None, ...]


class Network:
    """A model, the structure of the dense network it is (part of), and the sub-network that is alive.

    Made by `morphogen.trace`; changed by `morphogen.morph` alone.

    Attributes:
        model: the user's module, the one that trains.
        structure: the dense network as plain data.
        dense: the sub-network in which everything is alive.
        current: the sub-network the model is now.
        fake: the dense model on fake tensors (no memory, no arithmetic), for trying sub-networks out.
        grids: what of the model follows the resolution.
        fits: the sub-networks that have been tried out.
        initial: mean and standard deviation of the stacks' tensors when the model was traced; blocks that
            begin at random are drawn from it.
        constants: buffers and plain attributes with channels that are no running statistics (the filters of an
            anti-aliased pooling, a table of positions), and frozen parameters, as they were when the model was traced;
            what comes back of them has their values, at another resolution these values interpolated.
        away: what is out and is to come back as it was, by tensor, and the resolution at which it left; None where
            nobody asked for that. See `morph/away.py`.
        frozen: the parameters that a method does not train for now, by name.
        order: the units of each channel group, the most important first; None where nobody asked for that.
        outside: the blocks that are out, by path: the user's own modules, their tensors empty.
        held: for each optimizer, its parameter groups that have lost parameters, and what they held.
        begins: for each optimizer, how each entry of a parameter's state begins: a constant, or None for the weights.
        drop_path_scale: share of the dense rates of stochastic depth that is in use.
        answers: what has been found out on fake tensors, by what was asked.
    """

    def __init__(self, model: nn.Module, structure: Structure, fake: FakeModel):
        self.model = model
        self.structure = structure
        self.dense = SubNetwork(
            channels={group.name: tuple(range(group.size)) for group in structure.groups},
            blocks={stack.name: tuple(range(stack.size)) for stack in structure.stacks},
            resolution=structure.resolution,
        )
        self.current = self.dense
        self.fake = fake
        self.grids = Grids(fake, structure.resolution)
        self.fits = {self.dense}
        self.initial = _statistics(model, structure)
        self.constants = _constants(model, structure)
        self.away: dict[str, tuple[torch.Tensor, Resolution | None]] | None = None
        self.frozen: frozenset[str] = frozenset()
        self.order: Mapping[str, tuple[int, ...]] | None = None
        self.outside: dict[str, nn.Module] = {}
        self.held: WeakKeyDictionary[Optimizer, list[tuple[dict[str, Any], list[nn.Parameter]]]] = WeakKeyDictionary()
        self.begins: WeakKeyDictionary[Optimizer, dict[str, float | None]] = WeakKeyDictionary()
        self.drop_path_scale = 1.0
        self.answers: dict[Hashable, Any] = {}

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

    @cached_property
    def extent(self) -> Extent:
        """How much of it can change its width."""
        return extent(self.structure, [name for name, _ in self.fake.dense.named_parameters()])

    def __deepcopy__(self, memo: Any) -> Network:
        """Itself: it stands for the model that was traced, not for copies of that."""
        return self

    def __reduce__(self) -> Any:
        raise CheckpointError(
            "a network is not pickled, since what it holds of the graph is made anew by trace",
            expected="model.state_dict() in the file, and morphogen.trace where it is loaded",
        )

    def __repr__(self) -> str:
        """In one line, how much of the model can change."""
        size = "" if self.dense.resolution is None else ", {} x {} pixels".format(*self.dense.resolution)
        what = f"{type(self.model).__name__}: {len(self.groups)} channel groups, {len(self.stacks)} block stacks{size}"
        if self.groups or not self.structure.unread:
            return f"{what}; {self.extent}"
        return f"{what}; width cannot change: no rule for the op {next(iter(self.structure.unread))}"

    def is_constant(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor is one of `constants` still: what was frozen may learn by now."""
        return name in self.constants and not tensor.requires_grad

    def restored(self, name: str, target: SubNetwork, like: torch.Tensor) -> torch.Tensor | None:
        """What of a constant is alive in a sub-network, at the dense network's resolution; None where it is none.

        Args:
            name: of the tensor.
            target: the sub-network.
            like: the tensor, for its kind.
        """
        if not self.is_constant(name, like):
            return None
        return self.structure.tensors[name].part(self.constants[name].to(like), self.structure.alive_mask(target))

    def sketch(self, target: SubNetwork) -> nn.Module:
        """A sub-network on fake tensors: for trials, shapes and FLOPs; run it with `network.fake.run`."""
        alive, grid = self.structure.alive_mask(target), self.grids.at(target.resolution)
        layouts = self.structure.tensors

        def shape_of(name: str, tensor: torch.Tensor) -> tuple[int, ...]:
            if name not in layouts:
                return tuple(tensor.shape)
            return layouts[name].alive_shape(alive, grid.shapes.get(name))

        model = self.fake.reshaped(shape_of)
        faked = {name: None if b is None else self.fake.empty(b) for name, b in grid.buffers.items()}
        set_buffers(model, self, target, faked)
        set_attributes(model, self, target)
        for block in take_out(model, self.structure, target):
            for tensor in [*block.parameters(), *block.buffers()]:  # whoever still reads them is found out
                tensor.data = self.fake.empty(tensor.new_empty(0))
        return model

    def outputs_at(self, resolution: Resolution | None, *, training: bool) -> Shapes:
        """Shapes of what the dense network returns at a resolution, of two images in training; None for no tensor.

        Raises whatever the model's own code raises.
        """
        key = "outputs", resolution, training
        if key not in self.answers:
            model = self.sketch(replace(self.dense, resolution=resolution))
            make_ready(model, training=training)
            self.answers[key] = shapes_of(self.fake.run(model, resolution, batch=2 if training else None))
        return self.answers[key]

    def subnetwork(
        self,
        width: float | Mapping[str, float] | None = None,
        *,
        depth: float | Mapping[str, float] | None = None,
        resolution: float | int | tuple[int, int] | None = None,
        alive: Mapping[str, Sequence[int]] | None = None,
        blocks: Mapping[str, Sequence[int]] | None = None,
        multiple_of: int = 1,
    ) -> SubNetwork:
        """Describe a part of the dense network; what is not mentioned is whole. Nothing is changed.

        Args:
            width: share alpha of the channels to keep, in (0, 1], for all groups or by group name. The first
                floor(alpha C) channels of each group stay (Network Expansion, section 3.2). A share for all groups
                is one of heads, not of the size of heads as well (see `ChannelGroup.inner`).
            depth: share of each block stack to keep, in (0, 1], for all stacks or by stack name, rounded to
                whole units, at least one. The units kept are those between which growth would put copies.
            resolution: input size: pixels (an int, for square images, or height and width), or a share in
                (0, 1] of the dense one (a float). One that the model's patches or windows forbid is rounded
                to the nearest legal one; with a warning where pixels were asked for, or a share is off by
                more than an eighth.
            alive: indices of the units to keep, by group name; overrides `width` for these groups.
            blocks: positions of the units to keep, by stack name; overrides `depth` for these stacks.
            multiple_of: round channel counts to the nearest multiple, as hardware likes them; a group
                smaller than one multiple stays whole.

        Raises:
            SubNetworkError: a share outside (0, 1], an unknown group or stack, an index that does not exist,
                a depth without a block, a resolution below one patch, or a width where no channels can change
                because an op of the model has no rule.
        """
        if self.structure.unread and not self.groups and width is not None:
            self._refuse_width()
        shares = _shares(width, [group.name for group in self.groups if not group.inner], "width")
        if not isinstance(multiple_of, int) or multiple_of < 1:
            raise SubNetworkError("multiple_of out of range", expected="a number from 1", found=repr(multiple_of))
        self._check_names(self.groups, [*shares, *(alive or {})])
        channels = {
            group.name: tuple(range(_units(group, shares.get(group.name, 1.0), multiple_of))) for group in self.groups
        }
        channels |= {name: _indices(name, units) for name, units in (alive or {}).items()}
        subnetwork = SubNetwork(channels, self._blocks(depth, blocks or {}), self._resolution(resolution))
        self.check(subnetwork)
        return subnetwork

    def _blocks(
        self, depth: float | Mapping[str, float] | None, given: Mapping[str, Sequence[int]]
    ) -> dict[str, tuple[int, ...]]:
        """The positions alive in each stack."""
        if depth is not None and not self.stacks:
            raise SubNetworkError(
                "depth cannot change: no block stacks were found in this model",
                expected="at least two interchangeable blocks, one feeding the next",
                todo="`morphogen inspect` says which blocks were looked at",
            )
        if not isinstance(given, Mapping):
            raise SubNetworkError("bad blocks", expected="positions by the names in net.stacks", found=repr(given))
        shares = _shares(depth, [stack.name for stack in self.stacks], "depth")
        self._check_names(self.stacks, [*shares, *given])
        lengths = {stack.name: round_half_up(shares.get(stack.name, 1.0) * stack.size) for stack in self.stacks}
        if lengths and not any(lengths.values()):
            raise SubNetworkError(
                "this depth leaves no block",
                expected=f"at least {0.5 / max(stack.size for stack in self.stacks):.2g}",
                found=f"{depth}",
            )
        blocks = {
            stack.name: tuple(originals(interpolated(max(1, lengths[stack.name]), stack.size))) for stack in self.stacks
        }
        return blocks | {name: _indices(name, units) for name, units in given.items()}

    def _resolution(self, asked: float | int | tuple[int, int] | None) -> Resolution | None:
        """The nearest resolution at which the model runs."""
        dense = self.structure.resolution
        if asked is None:
            return dense
        if dense is None:
            raise SubNetworkError("resolution cannot change: the example is not a batch of images (N, C, H, W)")
        if isinstance(asked, float):
            if not 0 < asked <= 1:
                raise SubNetworkError(
                    "resolution out of range",
                    expected="pixels (a whole number), or a share in (0, 1]",
                    found=f"{asked}",
                )
            size = (max(1, round_half_up(asked * dense[0])), max(1, round_half_up(asked * dense[1])))
        else:
            size = asked if isinstance(asked, tuple) else (asked, asked)
        if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise SubNetworkError("bad resolution", expected="height and width, at least 1 pixel", found=f"{asked}")
        legal = self.grids.nearest(size)
        far = max(abs(a - b) / b for a, b in zip(legal, size, strict=True))
        if legal != size and (not isinstance(asked, float) or far > 1 / 8):
            warnings.warn(f"resolution {size} is not possible in this model; {legal} is taken", stacklevel=3)
        return legal

    def _refuse_width(self) -> None:
        op, path = next(iter(self.structure.unread.items()))
        more = len(self.structure.unread) - 1
        raise SubNetworkError(
            f"width cannot change: no rule for the op {op}" + (f" and {more} more" if more else ""),
            where=path or "the model's own forward",
            expected="an op of morphogen's rule table",
            todo=f"Add a rule, one function under @morphogen.rule({rule_name(op)!r}) (see docs/extending.md), or "
            + (
                "leave the modules that run it whole with trace(..., exclude=[...])"
                if path
                else "move it into a module"
            )
            + ". Depth and resolution can change as it is",
        )

    def check(self, subnetwork: SubNetwork) -> None:
        """Raise SubNetworkError unless `subnetwork` is a part of this dense network."""
        if not isinstance(subnetwork, SubNetwork):
            raise SubNetworkError("not a sub-network", expected="what net.subnetwork returns", found=repr(subnetwork))
        self._check_names(self.groups, subnetwork.channels)
        self._check_names(self.stacks, subnetwork.blocks)
        for group in self.groups:
            units = subnetwork.channels.get(group.name)
            if not units:
                raise SubNetworkError("a group must keep at least one unit", where=group.name)
            if not _are_positions(units, group.size):
                raise SubNetworkError(
                    "bad unit indices",
                    where=group.name,
                    expected=f"sorted, each once, from 0 to {group.size - 1}",
                    found=f"{units}",
                )
        for stack in self.stacks:
            units = subnetwork.blocks.get(stack.name)
            if not units:
                raise SubNetworkError("a stack must keep at least one block", where=stack.name)
            if not _are_positions(units, stack.size):
                raise SubNetworkError(
                    "bad block positions",
                    where=stack.name,
                    expected=f"sorted, each once, from 0 to {stack.size - 1}",
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
    if step >= group.size or share == 1:
        return group.size
    return min(group.size, max(step, int(share * group.size / step + 0.5) * step))


def _shares(asked: float | Mapping[str, float] | None, names: Sequence[str], what: str) -> dict[str, float]:
    """A share for each name, checked."""
    shares = dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(names, 1.0 if asked is None else asked)
    for name, share in shares.items():
        if not isinstance(share, Real) or not 0 < share <= 1:
            raise SubNetworkError(f"{what} out of range", where=name, expected=f"0 < {what} <= 1", found=repr(share))
    return {name: float(share) for name, share in shares.items()}


def _are_positions(units: Sequence[int], size: int) -> bool:
    """Whether these are whole numbers from 0 to `size` - 1, each once, in order."""
    whole = all(isinstance(unit, int) for unit in units)
    return whole and list(units) == sorted(set(units)) and units[0] >= 0 and units[-1] < size


def round_half_up(number: float) -> int:
    """The nearest whole number, halves upwards."""
    return int(number + 0.5 + 1e-9)


def _statistics(model: nn.Module, structure: Structure) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of the floating-point tensors in block stacks."""
    inside = frozenset(path for stack in structure.stacks for path in stack.blocks)
    tensors = {
        name: tensor.detach()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if within(name, inside) and tensor.is_floating_point() and prod(tensor.shape) and not tensor.is_meta
    }
    if not tensors:
        return {}
    pairs = [torch.stack([t.float().mean(), t.float().std(correction=0)]) for t in tensors.values()]
    return {name: (mean, std) for name, (mean, std) in zip(tensors, torch.stack(pairs).tolist(), strict=True)}


def _constants(model: nn.Module, structure: Structure) -> dict[str, torch.Tensor]:
    """Copies of what does not learn and may go: frozen parameters, and buffers with channels that are no statistics."""

    def may_go(name: str) -> bool:
        layout = structure.tensors.get(name)
        if layout is None or layout.role.kind in ("mean", "variance"):
            return False
        return any(axis is not None for axis in layout.axes)

    others = {**dict(model.named_buffers()), **plain_tensors(model)}
    tensors = {name: tensor for name, tensor in others.items() if may_go(name)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and name in structure.tensors:  # a table without channels may follow the grid
            tensors[name] = parameter
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def set_attributes(model: nn.Module, network: Network, target: SubNetwork) -> None:
    """Bring the sizes that modules keep to those of a sub-network; blocks that are out are left alone."""
    for path, name, value in attributes_in(network, target):
        module = model.get_submodule(path)
        try:
            if kept(module, name) != value:  # a property may follow the weights by itself
                keep(module, name, value)
        except Exception as error:  # whatever a property or __setattr__ of the model's own raises
            raise MorphError(
                f"the size {name} cannot be set ({first_line(error)})",
                where=path,
                expected="an attribute that can be written",
                todo="Leave the module whole: trace(..., exclude=['its path'])",
            ) from error


def attributes_in(network: Network, target: SubNetwork) -> Iterator[tuple[str, str, Any]]:
    """The sizes that the modules of a sub-network keep: module path, name, value."""
    structure = network.structure
    alive = structure.alive_mask(target)
    absent = frozenset(structure.absent(target))
    for layout in structure.attributes:
        if not within(layout.path, absent):
            yield layout.path, layout.name, layout.value(alive)
    values = network.grids.at(target.resolution).attributes
    for path, name in {key: None for grid in network.grids.known() for key in grid.attributes}:
        if not within(path, absent):
            whole = getattr(network.fake.dense.get_submodule(path), name)
            yield path, name, values.get((path, name), whole)


def set_buffers(
    model: nn.Module, network: Network, target: SubNetwork, buffers: Mapping[str, torch.Tensor | None]
) -> None:
    """Replace buffers that follow the resolution; those in blocks that are out of `target` are left alone."""
    absent = frozenset(network.structure.absent(target))
    device = next((parameter.device for parameter in model.parameters()), None)
    for name, value in buffers.items():
        if not within(name, absent):
            path, _, leaf = name.rpartition(".")
            buffers_of = model.get_submodule(path)._buffers
            old = buffers_of[leaf]
            same = old.dtype if old is not None and value is not None and value.is_floating_point() else None
            buffers_of[leaf] = None if value is None else value.to(device=device, dtype=same, copy=True)


def shapes_of(output: Any) -> Shapes:
    """The shape of each of the values returned; None for what is no tensor."""
    return tuple(tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else None for leaf in tree_leaves(output))

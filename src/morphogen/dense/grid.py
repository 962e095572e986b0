"""What of a model follows the input's resolution: position embeddings, window tables, sizes that modules keep.

Nothing is known of any architecture. The model is asked: through `set_input_size`, where it (or its patch
embedding) has one, as in timm; and by running it on fake tensors, where a parameter that is added to
activations of another size shows the size it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import SubNetworkError, first_line
from ..machine.placement import on_cpu
from ..machine.private import tree_leaves, tree_map
from .double import named_tensors
from .fake import FakeModel
from .program import silence

Resolution = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """What differs from the dense network at one resolution.

    Attributes:
        shapes: shapes of the parameters and buffers that follow the token grid, all channels alive.
        buffers: buffers that are computed anew (window masks, index tables), on the CPU; None where there
            is none at this resolution.
        whole: the same buffers at the dense resolution.
        attributes: (module path, name) -> value.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    buffers: Mapping[str, torch.Tensor | None] = field(default_factory=dict)
    whole: Mapping[str, torch.Tensor | None] = field(default_factory=dict)
    attributes: Mapping[tuple[str, str], Any] = field(default_factory=dict)


FARTHEST = 32
"""Pixels within which a legal resolution is looked for: as much as the strides of patches and stages add up to."""


class Grids:
    """What follows the resolution, for every resolution asked for so far; the model is asked once for each."""

    def __init__(self, fake: FakeModel, dense: Resolution | None):
        self._fake, self._dense = fake, dense
        self._found: dict[Resolution | None, Grid | Exception] = {dense: Grid()}
        self._whole: _Fitting | None = None

    def at(self, resolution: Resolution | None) -> Grid:
        """The grid of one resolution.

        Raises:
            SubNetworkError: the model cannot run at it.
        """
        if resolution not in self._found:
            assert resolution is not None and self._dense is not None
            try:
                if self._whole is None:
                    self._whole = _run_watched(self._fake.blank(), self._fake, self._dense, None)
                self._found[resolution] = find_grid(self._fake, resolution, self._dense, self._whole)
            except Exception as error:  # whatever the model's own code raises at this size
                self._found[resolution] = error.with_traceback(None)  # which would keep the copies it was tried on
        grid = self._found[resolution]
        if isinstance(grid, Exception):
            raise SubNetworkError(
                f"the model cannot run at this resolution ({first_line(grid)})",
                where=f"{resolution}",
                expected="a size that its patches and windows divide",
            ) from grid
        return grid

    def known(self) -> list[Grid]:
        """The grids found so far."""
        return [grid for grid in self._found.values() if isinstance(grid, Grid)]

    def buffers(self, resolution: Resolution | None) -> dict[str, torch.Tensor | None]:
        """The buffers that are known to follow the resolution, as they are at this one."""
        whole = {name: value for grid in self.known() for name, value in grid.whole.items()}
        return whole | dict(self.at(resolution).buffers)

    def nearest(self, size: Resolution) -> Resolution:
        """The resolution nearest to `size` at which the model runs; each side is looked for by itself.

        Raises:
            SubNetworkError: there is none near, or none as small.
        """
        if self._runs(size):
            return size
        legal = self._nearest_side(size[0]), self._nearest_side(size[1])
        self.at(legal)
        return legal

    def _runs(self, size: Resolution) -> bool:
        try:
            self.at(size)
        except SubNetworkError:
            return False
        return True

    def _nearest_side(self, side: int) -> int:
        """The nearest side of a square image with which the model runs."""
        for distance in range(FARTHEST + 1):
            if side > distance and self._runs((side - distance, side - distance)):
                return side - distance
            if distance and self._runs((side + distance, side + distance)):
                # A size below one patch, or of a model that takes one size alone, is not something to round up.
                least = max(0, side - distance - 1 - 2 * FARTHEST)
                if any(self._runs((less, less)) for less in range(side - distance - 1, least, -1)):
                    return side + distance
                raise SubNetworkError(
                    "the resolution is below the least that the model takes (one patch, or its one size)",
                    where=f"{side} pixels",
                    expected=f"at least {side + distance}",
                )
        raise SubNetworkError(
            f"the model cannot run at this resolution, nor at one within {FARTHEST} pixels",
            where=f"{side} pixels",
            expected="a size that its patches, windows and strides divide",
        )


@on_cpu
def find_grid(fake: FakeModel, resolution: Resolution, dense: Resolution, whole: _Fitting) -> Grid:
    """Ask the dense model what it needs at another resolution.

    Args:
        fake: the model.
        resolution, dense: the other one, and its own.
        whole: what its run at its own size has shown.

    Raises:
        Exception: whatever the model's own code raises where it cannot run at this resolution.
    """
    model = fake.blank()
    attributes, shapes, buffers = _attributes(model), _shapes(model), _buffers(model)
    with torch.no_grad(), silence():
        _announce(model, resolution, dense)
    at_resolution = _buffers(model)
    replaced = {name for name, b in at_resolution.items() if b is not buffers.get(name)}
    replaced |= buffers.keys() - at_resolution.keys()
    changed = {key: value for key, value in _attributes(model).items() if attributes.get(key, value) != value}
    known = _shapes(model)
    fitting = _run_watched(model, fake, resolution, whole)
    known |= fitting.shapes
    for images, rows in zip(whole.rows, fitting.rows, strict=False):
        if images == fake.batch != rows:  # `x.view(-1, 784)` makes one image of several small ones
            raise ValueError(f"an output for {images} images has {rows} rows")
    # A network without a token grid is used to odd sizes between its stages.
    if fitting.left_over and known != shapes:
        raise ValueError(fitting.left_over[0])
    if replaced:
        with torch.no_grad(), silence():
            _announce(model, dense, resolution)
    as_whole = _buffers(model)
    return Grid(
        {name: shape for name, shape in known.items() if shapes.get(name) not in (None, shape)},
        {name: at_resolution.get(name) for name in replaced},
        {name: as_whole.get(name) for name in replaced},
        changed,
    )


def _announce(model: nn.Module, resolution: Resolution, now: Resolution) -> None:
    """Tell the model its new input size, in the ways there are."""
    done: list[str] = []
    for path, module in model.named_modules():
        setter = getattr(module, "set_input_size", None)
        if setter is not None and not any(path == p or path.startswith(p + ".") or not p for p in done):
            setter(img_size=resolution)
            done.append(path)
    for module in model.modules():
        for name in ("image_size", "img_size"):
            value = getattr(module, name, None)
            if value == now or (isinstance(value, list) and tuple(value) == now):
                setattr(module, name, resolution if isinstance(value, tuple) else list(resolution))
            elif isinstance(value, int) and now == (value, value) and resolution[0] == resolution[1]:
                setattr(module, name, resolution[0])


@on_cpu
def _run_watched(model: nn.Module, fake: FakeModel, resolution: Resolution, whole: _Fitting | None) -> _Fitting:
    """Run a model of ordinary tensors at a resolution on fake ones, watched."""
    double = FakeModel(model, (), hooks=fake.hooks)
    fitting = _Fitting(double, resolution, whole)
    args, kwargs = fake.inputs(resolution)
    with double.mode:  # fake tensors of one mode do not meet those of another
        args, kwargs = tree_map(
            lambda t: torch.empty(t.shape, dtype=t.dtype) if isinstance(t, torch.Tensor) else t, (args, kwargs)
        )
    with double.running(), torch.no_grad():
        with fitting:
            outputs = double.dense(*args, **kwargs)
        fitting.rows = [t.shape[0] for t in tree_leaves(outputs) if isinstance(t, torch.Tensor) and t.ndim]
    return fitting


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Own:
    """A tensor of the model's own, or what its code cut out of it.

    Attributes:
        name: of the tensor.
        missing: how much less than the tensor each axis has.
    """

    name: str
    missing: Shape


class _Fitting(TorchFunctionMode):
    """Watches the model at another resolution.

    Where its own tensor is added to activations that had its size at the dense resolution, the size that it needs
    now is noted, and so are patches of a stage that do not divide what they cut: a convolution drops the rest
    silently. Patches of the image that do not raise ValueError; so does a sum that spreads the one place that is left
    over those of a table.

    Attributes:
        met: for each of the model's own tensors, and for parts of them, the sizes of what they were added to, in order.
        cuts: for each of them, the shapes of the parts that were cut out, in order.
        sums: the shapes that were added, in order.
        shapes, left_over: what was found.
        rows: the first sizes of the outputs.
    """

    ADDITIONS = frozenset(
        {
            torch.add,
            torch.Tensor.add,
            torch.Tensor.__add__,
            torch.Tensor.__radd__,
            torch.Tensor.add_,
            torch.Tensor.__iadd__,
        }
    )

    PARTS = frozenset({torch.Tensor.__getitem__, torch.Tensor.to})

    def __init__(self, double: FakeModel, resolution: Resolution, whole: _Fitting | None):
        super().__init__()
        tree = double.dense
        self.resolution, self.whole = resolution, whole
        self.own = {id(tensor): Own(name, (0,) * tensor.ndim) for name, tensor in named_tensors(tree).items()}
        self.kept: list[torch.Tensor] = []
        self.met: dict[Own, list[Shape]] = {}
        self.cuts: dict[str, list[Shape]] = {}
        self.shapes: dict[str, Shape] = {}
        self.left_over: list[str] = []
        self.rows: list[int] = []
        self.sums: list[tuple[Shape, Shape]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.ADDITIONS and len(args) > 1:
            first, second = self._fit(args[0], args[1]), self._fit(args[1], args[0])
            args = (first, second, *args[2:])
            if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
                self._check_sum(tuple(first.shape), tuple(second.shape))
        elif func is torch.conv2d and len(args) > 4:
            self._check_patches(tuple(args[0].shape[-2:]), tuple(args[1].shape[2:]), args[3], args[4])
        result = func(*args, **(kwargs or {}))
        if func in self.PARTS and id(args[0]) in self.own and result.ndim == args[0].ndim:
            self._cut(self.own[id(args[0])], args[0], result)
        return result

    def _cut(self, own: Own, whole: torch.Tensor, part: torch.Tensor) -> None:
        """A part may have been the whole, and follow the grid by itself: `table[:, : n + 1]`."""
        cuts, before = self.cuts.setdefault(own.name, []), self.whole.cuts.get(own.name, []) if self.whole else []
        cuts.append(tuple(part.shape))
        if len(before) >= len(cuts):
            dense = before[len(cuts) - 1]
            self._needs(
                own, whole, tuple(n if d == w else w for w, d, n in zip(whole.shape, dense, part.shape, strict=True))
            )
        self.kept.append(part)  # so that its id is not given to another
        missing = tuple(w - p + m for w, p, m in zip(whole.shape, part.shape, own.missing, strict=True))
        self.own[id(part)] = Own(own.name, missing)

    def _needs(self, own: Own, tensor: torch.Tensor, shape: Shape) -> bool:
        """Note the shape that a tensor, or a part of one, needs; whether it is another."""
        if shape == tuple(tensor.shape):
            return False
        self.shapes[own.name] = tuple(size + less for size, less in zip(shape, own.missing, strict=True))
        return True

    def _check_patches(self, sizes: Shape, kernel: Shape, stride: Any, padding: Any) -> None:
        if tuple(stride) == kernel and not any(padding):
            for size, patch in zip(sizes, kernel, strict=True):
                if size % patch:
                    self.left_over.append(f"patches of {patch} leave {size % patch} of {size} pixels over")
                    if sizes == self.resolution:  # of the image: no need to go on
                        raise ValueError(self.left_over[-1])

    def _check_sum(self, first: Shape, second: Shape) -> None:
        self.sums.append((first, second))
        if self.whole is None or len(self.whole.sums) < len(self.sums):
            return
        axes = zip(*(shape[::-1] for shape in (*self.whole.sums[len(self.sums) - 1], first, second)), strict=False)
        for a, b, now_a, now_b in axes:
            if a == b != 1 and now_a != now_b:
                raise ValueError(f"a sum of {a} and {b} places becomes one of {now_a} and {now_b}")

    def _fit(self, tensor: Any, other: Any) -> Any:
        own = self.own.get(id(tensor))
        if own is None or not isinstance(other, torch.Tensor) or other.ndim < tensor.ndim:
            return tensor
        met = tuple(other.shape[other.ndim - tensor.ndim :])
        self.met.setdefault(own, []).append(met)
        known = self.whole.met.get(own, []) if self.whole else []
        if len(known) < len(self.met[own]):
            return tensor
        dense = known[len(self.met[own]) - 1]
        shape = tuple(b if a == d > 1 else a for a, d, b in zip(tensor.shape, dense, met, strict=True))
        return tensor.new_empty(shape) if self._needs(own, tensor, shape) else tensor


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in named_tensors(model).items()}


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_buffers())


def _attributes(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Everything plain that modules keep."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    return all(leaf is None or isinstance(leaf, (bool, int, float, str)) for leaf in tree_leaves(value))

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

from ..errors import SubNetworkError, first_line
from ..machine.placement import on_cpu
from ..machine.private import tree_leaves
from .double import named_tensors
from .fake import FakeModel
from .fitting import Fitting, Resolution, run_watched
from .program import silence


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
        self._whole: Fitting | None = None

    def at(self, resolution: Resolution | None) -> Grid:
        """The grid of one resolution.

        Raises:
            SubNetworkError: the model cannot run at it.
        """
        if resolution not in self._found:
            assert resolution is not None and self._dense is not None
            try:
                if self._whole is None:
                    self._whole = run_watched(self._fake.blank(), self._fake, self._dense, None)
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
def find_grid(fake: FakeModel, resolution: Resolution, dense: Resolution, whole: Fitting) -> Grid:
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
    fitting = run_watched(model, fake, resolution, whole)
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

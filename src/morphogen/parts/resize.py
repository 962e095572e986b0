"""Images brought to the resolution that runs, and what the model says of their places brought back."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from math import gcd
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from ..dense.network import Network, Shapes
from ..errors import ConfigError
from ..machine.private import tree_flatten, tree_unflatten
from ..run.images import images_in, resized_call
from ..run.part import Call, Part
from ..run.run import Run
from .resizing import check_resizing, resized


class Resize(Part):
    """Resize the images of every forward pass, in evaluation too, on the device they are on.

    Images of the dense network's resolution get the one that runs, and those of another (training at several sizes,
    evaluation on whole images) change by the same share: their sizes and their form stay the loop's.

    An output that is a map (N, C, h, w) of the image's grid is interpolated to the size that it has for images as the
    loop gave them, so that masks of full size fit it.

    Attributes:
        kind: `bilinear` (antialiased), or `low-frequency` (the low frequencies of the spectrum, EfficientTrain).
    """

    name: ClassVar[str] = "resize the images"
    sharded: ClassVar[bool] = True
    replicated: ClassVar[bool] = True
    order: ClassVar[int] = 4

    def __init__(self, kind: str = "bilinear"):
        """Raises ConfigError for an unknown kind."""
        check_resizing(kind)
        self.kind = kind
        self._seen = True
        self._shapes: dict[tuple[tuple[int, int], bool], Shapes] = {}

    def settings(self) -> tuple[Any, ...]:
        """The kind."""
        return (self.kind,)

    def begin(self, run: Run) -> None:
        """Raises ConfigError where an output follows the grid, and is no map that can be brought back."""
        super().begin(run)
        resolutions = {each.resolution for each in run.possible}
        self._maps = {mode: _maps(run.network, resolutions, mode) for mode in (False, True) if run.hooked}

    def resized(self, images: torch.Tensor, resolution: tuple[int, int]) -> torch.Tensor:
        """Images (N, C, H, W), or each slice of volumes (N, C, D, H, W), at a resolution."""
        if images.ndim == 5:
            return resized(images.flatten(1, 2), resolution, self.kind).unflatten(1, images.shape[1:3])
        return resized(images, resolution, self.kind)

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Call:
        """Resize what is an image."""
        images = images_in(self.run.network, args, kwargs)
        # A loop that makes the calls itself may have images of the right size already.
        self._seen = self._seen or (training and (images is not None or not self.run.hooked))
        size = None if images is None else self._size(images[1], training)
        return (args, kwargs) if size is None else resized_call(self.run.network, args, kwargs, size, self.resized)

    def _size(self, images: torch.Tensor, training: bool) -> tuple[int, int] | None:
        """The height and width at which images run; None where nothing has any."""
        runs = (self.run.running if training else self.run.network.current).resolution
        if runs is None:
            return None
        height, width = map(_side, images.shape[-2:], runs, self.run.network.structure.resolution or runs)
        return height, width

    def before_step(self) -> None:
        """Raise ConfigError where the step had no images, and the whole resolution is not what it should run at."""
        seen, self._seen = self._seen, False
        if not seen and self.run.running.resolution != self.run.network.dense.resolution:
            raise ConfigError(
                "the resolution is to change, and this step's images were not seen",
                where=type(self.run.network.model).__name__,
                expected="floating-point images (N, C, H, W) as an argument of the model"
                if self.run.hooked
                else "images = run.begin_step(images) before every forward pass",
            )

    def begin_epoch(self, epoch: int) -> None:
        """The first step has not begun."""
        self._seen = False

    def after_forward(self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Bring maps back to the size that goes with the images given."""
        images, training = images_in(self.run.network, args, kwargs), self.run.network.model.training
        maps, dense = self._maps.get(training), self.run.network.structure.resolution
        if not maps or images is None or dense is None:
            return output
        height, width = images[1].shape[-2:]
        if self._size(images[1], training) == (height, width):
            return output  # as the model gives it
        leaves, tree = tree_flatten(output)
        for number in maps:
            if number < len(leaves) and isinstance(leaves[number], torch.Tensor) and leaves[number].ndim in (4, 5):
                leaves[number] = _enlarged(leaves[number], self._sides(number, training, (height, width)))
        return tree_unflatten(leaves, tree)

    def _sides(self, number: int, training: bool, size: tuple[int, int]) -> tuple[int, int]:
        """The size of a map for images of this size: in proportion, or as the whole network says where that is no whole
        number."""
        dense = self.run.network.structure.resolution
        assert dense is not None  # there are maps
        sides, steady = self._maps[training][number]
        if not steady or any(side * given % whole for side, given, whole in zip(sides, size, dense, strict=True)):
            if (size, training) not in self._shapes:
                self._shapes[size, training] = ()
                with suppress(Exception):  # whatever the model's own code raises at a size that it was not made for
                    self._shapes[size, training] = self.run.network.outputs_at(size, training=training)
            shape = next(iter(self._shapes[size, training][number:]), None)
            if shape is not None:
                return shape[-2], shape[-1]
        height, width = (round(side * given / whole) for side, given, whole in zip(sides, size, dense, strict=True))
        return height, width


def _side(given: int, runs: int, dense: int) -> int:
    """What a side of an image becomes. Where both sides can be halved (at most to a 32nd), it can be as often."""
    if given in (dense, runs):  # the latter has been resized already
        return runs
    unit = gcd(given, runs, 32)
    return max(1, round(given * runs / dense / unit)) * unit


def _enlarged(maps: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    if maps.ndim == 5:
        return _enlarged(maps.flatten(1, 2), size).unflatten(1, maps.shape[1:3])
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _maps(
    network: Network, resolutions: Collection[tuple[int, int] | None], training: bool
) -> dict[int, tuple[tuple[int, int], bool]]:
    """The outputs that are maps of the image's grid, by their place among the outputs: height and width of the dense
    network's, and whether those of the smallest images are in proportion."""
    dense = network.structure.resolution
    small = min((r for r in resolutions if r is not None), default=dense)
    if dense is None or small is None or small == dense:
        return {}
    try:
        shapes = [network.outputs_at(resolution, training=training) for resolution in (dense, small)]
    except Exception:  # whatever a model's own code raises in a mode that it may never be in
        return {}
    pairs = list(zip(*shapes, strict=False))
    follow = {i: (whole, less) for i, (whole, less) in enumerate(pairs) if whole and less and whole != less}
    maps = {
        i: ((whole[-2], whole[-1]), all(whole[k] * small[k] == less[k] * dense[k] for k in (-2, -1)))
        for i, (whole, less) in follow.items()
        if len(whole) in (4, 5)
    }
    if follow and not maps and len(follow) == sum(whole is not None for whole, _ in pairs):
        raise ConfigError(
            "all that this model returns follows the image's grid, and would not fit targets of full size",
            where=type(network.model).__name__,
            expected="maps (N, C, H, W), which are brought back to full size, or one output for each image",
            found=", ".join(f"shape {shape}" for shape, _ in follow.values()),
            todo="Use a method that leaves the resolution alone, or attach(..., hooks=False) and "
            "images, targets = run.begin_step(images, targets)",
        )
    return maps

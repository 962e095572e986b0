"""Which of a model's arguments are images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..dense.images import Path, exchanged, inputs_in, is_map
from ..dense.network import Network
from .part import Call


def images_in(network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Path, torch.Tensor] | None:
    """Where a call has its largest images, and what they are; None where it has none.

    They are where the example had them. Where a loop calls the model in another way, they are the first floating-point
    map with as many channels: masks, whose numbers are classes, and maps of another number of channels are none.
    """
    channels = network.fake.image_channels
    maps = {path: t for path, t in inputs_in(args, kwargs) if is_map(t) and channels in (None, t.shape[1])}
    path = next((path for path in (*list(network.fake.images)[:1], *maps) if path in maps), None)
    return None if path is None else (path, maps[path])


def resized_call(
    network: Network,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    resolution: tuple[int, int],
    resize: Callable[[torch.Tensor, tuple[int, int]], torch.Tensor],
) -> Call:
    """The same call at another resolution: on other images, and on those beside them in proportion."""
    found = images_in(network, args, kwargs)
    if found is None:
        return args, kwargs
    sizes, there = network.fake.sizes(resolution), dict(inputs_in(args, kwargs))
    own = {path: size for path, size in sizes.items() if path in there and is_map(there[path])} | {found[0]: resolution}
    new = {path: resize(there[path], size) for path, size in own.items()}
    return tuple(exchanged(list(args), new)), exchanged(kwargs, new)


def nearest(target: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """A map of classes, or of anything else, at another size; its values stay the ones that it had."""
    if target.shape[-2:] == size:
        return target
    maps = target if target.ndim == 4 else target.unsqueeze(1)
    sides = zip(size, maps.shape[-2:], strict=True)
    rows, columns = (((torch.arange(new, device=target.device) + 0.5) * old / new).long() for new, old in sides)
    maps = maps[..., rows, :][..., columns]
    return maps if target.ndim == 4 else maps.squeeze(1)

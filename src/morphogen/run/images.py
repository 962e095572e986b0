"""Which of a model's arguments are images."""

from __future__ import annotations

from typing import Any

import torch

from ..dense.network import Network
from .part import Call


def images_in(network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | str, torch.Tensor] | None:
    """Where a call has its images, and what they are; None where it has none.

    They are the first floating-point tensor (N, C, H, W) with as many channels as the example's: masks, whose numbers
    are classes, and maps of another number of channels are none.
    """
    channels = network.fake.image_channels
    for key, value in [*enumerate(args), *kwargs.items()]:
        is_map = isinstance(value, torch.Tensor) and value.ndim == 4 and value.is_floating_point()
        if is_map and channels in (None, value.shape[1]):
            return key, value
    return None


def with_images(key: int | str, images: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The same call on other images."""
    if isinstance(key, int):
        return (*args[:key], images, *args[key + 1 :]), kwargs
    return args, kwargs | {key: images}


def nearest(target: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """A map of classes, or of anything else, at another size; its values stay the ones that it had."""
    if target.shape[-2:] == size:
        return target
    maps = target if target.ndim == 4 else target.unsqueeze(1)
    sides = zip(size, maps.shape[-2:], strict=True)
    rows, columns = (((torch.arange(new, device=target.device) + 0.5) * old / new).long() for new, old in sides)
    maps = maps[..., rows, :][..., columns]
    return maps if target.ndim == 4 else maps.squeeze(1)

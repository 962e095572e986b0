"""The memory format of a run: channels-last, unless PyTorch's own kernels end the process in it."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import nn

from .recipe import Recipe

VECTOR = 16
"""Numbers of float32 in an AVX-512 register."""
NARROWEST = 4
"""The smallest sub-networks of a run are taken to have a quarter of the width."""
SAFE_SIDE = 40
"""Maps of this side and below were never seen to crash, with all memory behind guard pages."""


def in_memory_format(model: nn.Module, recipe: Recipe, side: int) -> Recipe:
    """Put a model in the memory format of its recipe.

    PyTorch 2.15's kernel for the weights of a strided 1 x 1 convolution on a CPU with AVX-512 (oneDNN's
    `jit_avx512_common_1x1_convolution_bwd_weights`) writes past its memory where the layer has fewer input channels
    than a register has numbers, in float32, channels-last, on maps of 48 x 48 and above. The process dies, or worse.
    Where the dense model or a quarter of it has such a layer, the run stays in the contiguous format, and says so.

    Args:
        model: the dense model, on its device.
        recipe: how it is trained.
        side: of the images, in pixels.

    Returns:
        The recipe as it holds for this model: with channels_last only where the model is.
    """
    if not recipe.channels_last:
        return recipe
    crashing = _crashing(model) if side > SAFE_SIDE and _has_the_kernel(recipe) else None
    if crashing is None:
        model.to(memory_format=torch.channels_last)  # pyright: ignore  (PyTorch's stubs lack it)
        return recipe
    warnings.warn(
        f"{crashing}: PyTorch's CPU kernel for strided 1 x 1 convolutions crashes in channels-last below {VECTOR} "
        f"channels on images of {side} pixels, and a sub-network may be that narrow: training in the contiguous format",
        stacklevel=2,
    )
    return replace(recipe, channels_last=False)


def _has_the_kernel(recipe: Recipe) -> bool:
    on_cpu = recipe.torch_device().type == "cpu"
    return on_cpu and recipe.autocast is None and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _crashing(model: nn.Module) -> str | None:
    """The path of a layer that crashes at a quarter of its width or above."""
    layers = ((path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
    strided = ((path, layer) for path, layer in layers if layer.kernel_size == (1, 1) and max(layer.stride) > 1)
    return next((path for path, layer in strided if layer.groups == 1 and layer.in_channels < NARROWEST * VECTOR), None)

"""Images brought to a sub-network's resolution, a whole batch at once, on the device they are on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError

Size = tuple[int, int]
"""Height and width in pixels."""


def bilinear(images: Tensor, size: Size) -> Tensor:
    """Images (N, C, H, W), float32, resized with antialiasing."""
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def low_frequency(images: Tensor, size: Size) -> Tensor:
    """The low frequencies of images (N, C, H, W), float32, as images of a smaller size (h, w).

    The centred h x w part of the spectrum, brought back; the factor keeps the mean brightness. Frequencies below
    h / 2 and w / 2 cycles an image stay exactly what they were (EfficientTrain, Wang et al., ICCV 2023, section 4.1).

    Raises:
        ConfigError: the size is larger than the images.
    """
    (height, width), (h, w) = images.shape[-2:], size
    if h > height or w > width:
        raise ConfigError("cannot crop a spectrum to more", expected=f"at most {height} x {width}", found=f"{h} x {w}")
    spectrum = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1))
    top, left = height // 2 - h // 2, width // 2 - w // 2  # frequency 0 is at n // 2 of a shifted axis
    low = torch.fft.ifftshift(spectrum[..., top : top + h, left : left + w], dim=(-2, -1))
    return torch.fft.ifft2(low).real * ((h * w) / (height * width))


RESIZINGS: dict[str, Callable[[Tensor, Size], Tensor]] = {"bilinear": bilinear, "low-frequency": low_frequency}
"""What a method's `resizing` may be."""


def resized(images: Tensor, size: Size, resizing: str) -> Tensor:
    """Images of that size; those that have it already are returned as they are."""
    if images.shape[-2:] == size:
        return images
    if images.dtype in (torch.float16, torch.bfloat16):  # in which PyTorch has neither of the two everywhere
        return RESIZINGS[resizing](images.float(), size).to(images.dtype)
    return RESIZINGS[resizing](images, size)


def check_resizing(resizing: str) -> None:
    """Refuse an unknown name, before anything is trained; raises ConfigError."""
    if resizing not in RESIZINGS:
        raise ConfigError(f"no resizing '{resizing}'", expected=" or ".join(RESIZINGS))

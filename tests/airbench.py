"""A small network in the manner of airbench (K. Jordan, 94 % on CIFAR-10 in 3.29 seconds, arXiv 2404.00498).

Written anew. What makes it hard to narrow: the first convolution is frozen, with the eigenvectors of the images'
patches and their negatives as filters; the first filters of every later one are an identity (`dirac_`), the rest
random; batch norm has an epsilon of 1e-12, and its scales are frozen.
"""

from __future__ import annotations

import torch
from torch import nn

EPSILON = 1e-12


class Scaled(nn.Module):
    """A constant factor."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def identity_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution whose first filters hand their inputs on."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    return conv


def shift_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm that learns no scale."""
    norm = nn.BatchNorm2d(channels, eps=EPSILON, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def whitening(images: torch.Tensor) -> nn.Conv2d:
    """Patches of 2 x 2 pixels in the basis of their covariance, each at variance 1, and their negatives."""
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).transpose(1, 3).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.mT @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).mT.flip(0).view(12, 3, 2, 2)
    conv = nn.Conv2d(3, 24, 2)
    conv.weight.data = torch.cat([filters, -filters])
    conv.weight.requires_grad_(False)
    return conv


def airbench(images: torch.Tensor, widths: tuple[int, ...] = (32, 64, 64), classes: int = 10) -> nn.Sequential:
    """The network, for images of 32 x 32 pixels like those given."""
    layers: list[nn.Module] = [whitening(images), nn.GELU()]
    inputs = 24
    for width in widths:
        layers += [identity_conv(inputs, width), nn.MaxPool2d(2), shift_norm(width), nn.GELU()]
        layers += [identity_conv(width, width), shift_norm(width), nn.GELU()]
        inputs = width
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(inputs, classes, bias=False), Scaled(1 / 9))

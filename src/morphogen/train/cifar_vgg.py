"""VGG-11 and VGG-13 for 32 x 32 images (Simonyan and Zisserman, ICLR 2015; PruneTrain, section 5)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2)}
"""Convolutions before each pooling."""


class CifarVGG(nn.Module):
    """Five stages of 3 x 3 convolutions with batch norm, each with a pooling behind it, and one linear layer.

    The three linear layers of the network for ImageNet have nothing left to do at 1 x 1.

    Args:
        depth: 11 or 13.
        num_classes: scores.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        in_chans: channels of the image.
    """

    def __init__(self, depth: int, num_classes: int = 10, width: int = 64, in_chans: int = 3):
        super().__init__()
        layers, channels = list[nn.Module](), in_chans
        for count, times in zip(STAGES[depth], (1, 2, 4, 8, 8), strict=True):
            for _ in range(count):
                convolution = nn.Conv2d(channels, times * width, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(times * width), nn.ReLU(inplace=True)]
                channels = times * width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # of one pixel it leaves one, so that smaller images go too
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_chans, H, W) to (N, num_classes)."""
        return self.classifier(self.features(x).mean((2, 3)))


CIFAR_VGGS = {f"cifar_vgg{depth}": partial(CifarVGG, depth) for depth in STAGES}
"""With batch norm; bare `vgg11` and `vgg13` are torchvision's."""

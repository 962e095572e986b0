"""A detector for small images: RetinaNet (Lin et al., ICCV 2017) on a residual network for CIFAR."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from .cifar_resnet import CifarResNet

STRIDES = (4, 8)
"""Pixels of the image for one of a map."""

ANCHOR = 4
"""Side of the smallest anchor in strides, with two more in each octave (section 4 of the paper)."""


class Maps(nn.Module):
    """The last stage of a CIFAR network, as a feature pyramid of two levels.

    Args:
        depth, width: see `CifarResNet`.
        out_channels: of the maps.
    """

    def __init__(self, depth: int, width: int, out_channels: int):
        super().__init__()
        net = CifarResNet(depth, width=width)
        self.conv1, self.bn1, self.layer1, self.layer2, self.layer3 = (
            net.conv1,
            net.bn1,
            net.layer1,
            net.layer2,
            net.layer3,
        )
        self.fpn = FeaturePyramidNetwork([4 * width], out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """(N, 3, H, W) to maps (N, out_channels, H / 4, W / 4) and half of it."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.fpn(OrderedDict({"0": self.layer3(self.layer2(self.layer1(x)))}))


def retinanet(depth: int, num_classes: int = 11, width: int = 16, out_channels: int = 32) -> RetinaNet:
    """For objects of about 12 to 60 pixels.

    Args:
        depth, width: see `CifarResNet`.
        num_classes: with the background, as torchvision counts.
        out_channels: of the pyramid and the heads.
    """
    sizes = tuple(tuple(round(ANCHOR * stride * 2 ** (third / 3)) for third in range(3)) for stride in STRIDES)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return RetinaNet(Maps(depth, width, out_channels), num_classes, anchor_generator=anchors)


SMALL_DETECTORS = {f"retinanet_resnet{depth}": partial(retinanet, depth) for depth in (8, 20)}

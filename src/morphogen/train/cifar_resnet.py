"""The residual networks for 32 x 32 images of He et al. (CVPR 2016), section 4.2."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import ConfigError

EXPANSION = 4
"""Channels that leave a bottleneck, for each of its 3 x 3 convolution."""


class PadShortcut(nn.Module):
    """Option A: every second pixel where the resolution halves, and zeros for the channels that are new."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


def _shortcut(kind: str, inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(inputs, outputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(shortcut, inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1, of which the last widens, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str):
        super().__init__()
        inner = outputs // EXPANSION
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(shortcut, inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x), inplace=True)


class CifarResNet(nn.Module):
    """ResNet-(6n+2): a stem and three stages of n blocks with `width`, 2 `width` and 4 `width` channels.

    Args:
        depth: 6n + 2.
        num_classes: scores.
        width: channels of the stem and of the first stage's 3 x 3 convolutions.
        in_chans: channels of the image.
        shortcut: what stands where the shape changes: `project`, a 1 x 1 convolution with batch norm (option B), or
            `pad`, zeros (option A, the paper's CIFAR networks; 2 % fewer parameters in ResNet-20).
        bottleneck: n bottlenecks of three convolutions in each stage, of four times the channels, in place of n basic
            blocks. So the deeper CIFAR networks of PruneTrain are built: its Table 3 counts 86 layers of a ResNet-56.

    Raises:
        ConfigError: a depth that is no 6n + 2, or another shortcut.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        width: int = 16,
        in_chans: int = 3,
        shortcut: str = "project",
        bottleneck: bool = False,
    ):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ConfigError("no such depth", where="CifarResNet", expected="6n + 2, such as 20", found=f"{depth}")
        if shortcut not in ("project", "pad"):
            raise ConfigError("no such shortcut", where="CifarResNet", expected="project or pad", found=f"{shortcut!r}")
        make, wide = (Bottleneck, EXPANSION * width) if bottleneck else (BasicBlock, width)

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            rest = (make(outputs, outputs, 1, shortcut) for _ in range(blocks - 1))
            return nn.Sequential(make(inputs, outputs, stride, shortcut), *rest)

        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(width, wide, 1)
        self.layer2 = stage(wide, 2 * wide, 2)
        self.layer3 = stage(2 * wide, 4 * wide, 2)
        self.fc = nn.Linear(4 * wide, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_chans, H, W) to (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


CIFAR_RESNETS = {f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)} | {
    "cifar_resnet50": partial(CifarResNet, 50, bottleneck=True)
}
"""ResNet-20/32/44/56/110 of the paper, the two shorter ones for quick studies, and PruneTrain's ResNet-50 (a bare
`resnet50` is torchvision's)."""

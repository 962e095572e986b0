"""Nets built like other people's whose code asks for sizes in ways of its own."""

import torch
import torch.nn.functional as F
from torch import nn


class Windows(nn.Module):
    """Swin V2 of torchvision: a third of the attention's bias is found by `numel`, and zeroed."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.project = nn.Conv2d(3, 16, 4, stride=4), nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.heads, self.head = 4, nn.Linear(16, 5)

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        bias = self.qkv.bias.clone()
        length = bias.numel() // 3
        bias[length : 2 * length].zero_()
        qkv = F.linear(x, self.qkv.weight, bias)
        qkv = qkv.reshape(x.size(0), x.size(1), 3, self.heads, x.size(2) // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.project(mixed)
        return self.head((x + self.mlp(x)).mean(1))


class Stage(nn.Module):
    """A block of Hiera: what it does depends on whether two of its numbers differ, one of which counts nothing else."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.widen, self.mix = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)
        self.mlp = nn.Sequential(nn.Linear(outputs, 4 * outputs), nn.GELU(), nn.Linear(4 * outputs, outputs))

    def forward(self, x):
        if self.inputs != self.outputs:
            x = self.widen(x).view(x.size(0), 2, -1, self.outputs).amax(1)
        x = x + self.mix(x)
        return x + self.mlp(x)


class Pooling(nn.Module):
    """Two stages of twice the channels, with half the tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(32, 5)
        self.stages = nn.Sequential(Stage(8, 16), Stage(16, 32))

    def forward(self, images):
        return self.head(self.stages(self.embed(images).flatten(2).transpose(1, 2)).mean(1))


class Experts(nn.Module):
    """A depthwise CondConv: every example mixes a kernel of its own, and the batch becomes groups."""

    def __init__(self):
        super().__init__()
        self.stem, self.route, self.wide = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Conv2d(8, 32, 1)
        self.channels = self.groups = 8
        self.kernels = nn.Parameter(torch.randn(4, 8 * 9))
        self.head = nn.Sequential(
            nn.Conv2d(32, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
        )

    def forward(self, images):
        x = F.relu(self.stem(images))
        B, C, H, W = x.shape
        mixed = torch.sigmoid(self.route(x.mean((2, 3)))) @ self.kernels
        mixed = mixed.view(B * self.channels, self.channels // self.groups, 3, 3)
        y = F.conv2d(x.reshape(1, B * C, H, W), mixed, padding=1, groups=self.groups * B)
        return self.head(F.relu(self.wide(y.view(B, self.channels, H, W))))


SIZES = {"windows": Windows, "pooling": Pooling, "experts": Experts}

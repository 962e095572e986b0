"""Small nets put together at random: residual, concatenated, grouped, depthwise, attending, shared; any norm."""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional as F

PER_CHANNEL = ("batch", "instance", "none")
NORMS = (*PER_CHANNEL, "group", "layer")


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of (N, C, H, W)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    if kind == "group":
        return nn.GroupNorm(2, channels)
    return ChannelNorm(channels) if kind == "layer" else nn.Identity()


class Branch(nn.Module):
    """A residual branch; `groups` of its first convolution."""

    def __init__(self, channels: int, hidden: int, kind: str, groups: int = 1):
        super().__init__()
        self.norm = norm(kind, channels)
        self.first = nn.Conv2d(channels, hidden, 3, padding=1, groups=groups, bias=kind == "none")
        self.norm2 = norm(kind, hidden)
        self.second = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        return x + self.second(F.gelu(self.norm2(self.first(self.norm(x)))))


class Joined(nn.Module):
    """Two branches of their own widths, concatenated."""

    def __init__(self, channels: int, left: int, right: int, kind: str):
        super().__init__()
        self.left, self.right = nn.Conv2d(channels, left, 1), nn.Conv2d(channels, right, 3, padding=1)
        self.norm, self.out = norm(kind, left + right), nn.Conv2d(left + right, channels, 1)

    def forward(self, x):
        return self.out(torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1))))


class Attending(nn.Module):
    """Self-attention over the places of an image."""

    def __init__(self, channels: int, heads: int, kind: str):
        super().__init__()
        self.heads, self.norm = heads, norm(kind, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        n, _, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(n, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).unflatten(2, (height, width))


class Shared(nn.Module):
    """One convolution, run twice."""

    def __init__(self, channels: int, kind: str):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), norm(kind, channels)

    def forward(self, x):
        return self.conv(torch.relu(self.norm(self.conv(x))))


class RandomNet(nn.Module):
    """Made from its number alone.

    Attributes:
        per_channel: whether all its normalisation is per channel.
    """

    def __init__(self, number: int):
        super().__init__()
        dice = random.Random(number)
        channels, kinds = dice.choice([4, 8, 12]), set[str]()

        def kind() -> str:
            drawn = dice.choice(NORMS if number % 3 == 0 else PER_CHANNEL)
            kinds.add(drawn)
            return drawn

        def piece(name: str) -> nn.Module:
            if name == "residual":
                return Branch(channels, dice.choice([4, 6, 8]), kind())
            if name == "depthwise":
                return Branch(channels, channels, kind(), groups=channels)
            if name == "grouped":
                return Branch(channels, 2 * channels, kind(), groups=dice.choice([2, 4]))
            if name == "stack":
                own, hidden = kind(), dice.choice([4, 6])
                return nn.Sequential(*(Branch(channels, hidden, own) for _ in range(dice.choice([2, 3]))))
            if name == "concat":
                return Joined(channels, dice.choice([2, 4]), dice.choice([4, 8]), kind())
            return Attending(channels, dice.choice([2, 4]), kind()) if name == "attention" else Shared(channels, kind())

        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        names = [dice.choice(PIECES) for _ in range(dice.choice([2, 3, 4]))]
        self.pieces = nn.ModuleList(map(piece, names))
        self.last, self.fc = norm("batch", channels), nn.Linear(channels, 5)
        self.per_channel = kinds <= {*PER_CHANNEL}

    def forward(self, x):
        x = self.stem(x)
        for piece in self.pieces:
            x = piece(x)
        return self.fc(self.last(x).mean((2, 3)))


PIECES = ("residual", "depthwise", "grouped", "stack", "concat", "attention", "shared")

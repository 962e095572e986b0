"""Nets whose own loop adds the residual, or calls several modules a turn; each has the units `unit(model, i)`."""

import torch
from torch import nn
from torch.nn import functional as F

from nets import Tower


class Branch(nn.Module):
    """A convolution and its norm, without the residual."""

    def __init__(self, channels=8):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(self.conv(x))


class Wide(Branch):
    """Another of the same tensors."""


class Loop(nn.Module):
    """A stem, a loop, a head."""

    def __init__(self, depth=4, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.make(depth)
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        return self.head(self.loop(self.stem(x)).mean((2, 3)))


class Added(Loop):
    """`x = x + block(x)`, in place into the branch, behind a factor and dropout."""

    def make(self, depth):
        self.blocks = nn.ModuleList(Branch() for _ in range(depth))
        self.drop = nn.Dropout(0.0)

    def loop(self, x):
        for i in range(len(self.blocks)):
            branch = self.drop(0.5 * self.blocks[i](x))
            branch += x
            x = branch
        return x

    def unit(self, i):
        return [self.blocks[i]]


class Pairs(Loop):
    """The loop of vit-pytorch."""

    def make(self, depth):
        self.layers = nn.ModuleList(nn.ModuleList([Branch(), Wide()]) for _ in range(depth))

    def loop(self, x):
        for mix, feed in self.layers:
            x = mix(x) + x
            x = feed(x) + x
        return x

    def unit(self, i):
        return [*self.layers[i]]


class Twins(Pairs):
    """Pairs of the same kind."""

    def make(self, depth):
        self.layers = nn.ModuleList(nn.ModuleList([Branch(), Branch()]) for _ in range(depth))


class Zipped(Loop):
    """Two lists in step."""

    def make(self, depth):
        self.mixes = nn.ModuleList(Branch() for _ in range(depth))
        self.feeds = nn.ModuleList(Branch() for _ in range(depth))

    def loop(self, x):
        for mix, feed in zip(self.mixes, self.feeds, strict=True):
            x = x + mix(x)
            x = x + feed(x)
        return x

    def unit(self, i):
        return [self.mixes[i], self.feeds[i]]


class Behind(Zipped):
    """The same, the list that is called first registered last."""

    def make(self, depth):
        self.feeds = nn.ModuleList(Branch() for _ in range(depth))
        self.mixes = nn.ModuleList(Branch() for _ in range(depth))


class NormFirst(Loop):
    """Norms beside the branches that read them, and a function of the stream before each."""

    def make(self, depth):
        self.layers = nn.ModuleList(nn.ModuleList([nn.BatchNorm2d(8), Branch()]) for _ in range(depth))

    def loop(self, x):
        for norm, branch in self.layers:
            residual = x
            x = branch(F.relu(norm(F.instance_norm(x))))
            x = residual + x
        return x

    def unit(self, i):
        return [*self.layers[i]]


class Alternating(Loop):
    """One flat list in which two kinds take turns."""

    def make(self, depth):
        self.layers = nn.ModuleList(kind() for _ in range(depth) for kind in (Branch, Wide))

    def loop(self, x):
        for layer in self.layers:
            x = torch.add(layer(x), x)
        return x

    def unit(self, i):
        return [self.layers[2 * i], self.layers[2 * i + 1]]


class Inside(Tower):
    """The residual inside the block, as everywhere else."""

    def unit(self, i):
        return [self.blocks[i]]


LOOPS = {net.__name__: net for net in (Inside, Added, Pairs, Twins, Zipped, Behind, NormFirst, Alternating)}

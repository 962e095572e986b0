"""Small nets whose groups, parameters and FLOPs can be worked out by hand, and a few for odd corners."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import timm
import torch
from timm.models.volo import VOLO
from torch import nn

import morphogen
from morphogen.dense.bypass import Bypass

from traced import traced_once


class Plain(nn.Module):
    """conv-BN-conv-flatten-linear on 8 x 8 images."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.fc = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).flatten(1))


class Residual(nn.Module):
    """A stem and one residual block."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.relu(x + y).mean((2, 3)))


class Concat(nn.Module):
    """Two branches of different widths, concatenated, then a 1 x 1 convolution."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 8, 1)
        self.right = nn.Conv2d(3, 4, 3, padding=1)
        self.join = nn.Conv2d(12, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        return self.fc(torch.relu(self.join(x)).mean((2, 3)))


class Grouped(nn.Module):
    """A depthwise convolution, one of two groups (kept) and one of eight (which lose whole groups)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.two = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.widen = nn.Conv2d(12, 32, 1)
        self.eight = nn.Conv2d(32, 16, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.two(torch.relu(self.depthwise(self.stem(x))))
        return self.fc(self.norm(self.eight(torch.relu(self.widen(torch.relu(x))))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """A gate on the channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.reduce = nn.Conv2d(16, 4, 1)
        self.expand = nn.Conv2d(4, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        gate = torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        return self.fc((x * gate).mean((2, 3)))


class Mixed(nn.Module):
    """Everything at once: transposed convolution, group and instance norm, GLU, PReLU, layer scale,
    interpolation, pixel shuffle, channel shuffle, layer norm over permuted channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.gn = nn.GroupNorm(8, 16)
        self.glu = nn.Conv2d(16, 24, 1)
        self.prelu = nn.PReLU(12)
        self.down = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.instance = nn.InstanceNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.scale = nn.Parameter(torch.full((12, 1, 1), 0.1))
        self.to_shuffle = nn.Conv2d(12, 32, 1)
        self.after = nn.Conv2d(8, 12, 3, padding=1)
        self.norm = nn.LayerNorm(12)
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        x = torch.relu(self.gn(self.stem(x)))
        a, b = self.glu(x).chunk(2, 1)
        x = self.prelu(a * torch.sigmoid(b))
        y = self.up(self.instance(self.down(x)))
        x = x + self.scale * y
        x = nn.functional.channel_shuffle(self.to_shuffle(x), 2)
        x = nn.functional.pixel_shuffle(x, 2)
        x = nn.functional.interpolate(self.after(x), scale_factor=0.5, mode="bilinear")
        return self.fc(self.norm(x.permute(0, 2, 3, 1)).mean((1, 2)))


class DropPath(nn.Module):
    """Stochastic depth, as every library has its own."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if not self.training or not self.drop_prob:
            return x
        keep = torch.rand(len(x), 1, 1, 1) >= self.drop_prob
        return x * keep / (1 - self.drop_prob)


class Block(nn.Module):
    """A residual block; like timm, it has no module of stochastic depth where the rate is 0."""

    def __init__(self, channels, rate):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(rate) if rate else nn.Identity()

    def forward(self, x):
        return x + self.drop_path(self.norm(self.conv(x)))


class Tower(nn.Module):
    """A stem, a stack of equal blocks, a head."""

    def __init__(self, depth=4, channels=12, rate=0.3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        rates = [rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(channels, r) for r in rates)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        x = self.conv1(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


NETS = {net.__name__: net for net in (Plain, Residual, Concat, Grouped, SqueezeExcite, Mixed)}
PER_CHANNEL = [name for name in NETS if name != "Mixed"]
"""Nets all of whose normalisation is per channel, so that a sub-network equals the masked dense network."""


class Numbered(nn.Module):
    """A residual block that carries a number in its first layer; its second one writes into the stream."""

    def __init__(self, number):
        super().__init__()
        self.read = nn.Linear(2, 2)
        self.write = nn.Linear(2, 2)
        nn.init.constant_(self.read.weight, number)

    def forward(self, x):
        return x + self.write(torch.tanh(self.read(x)))


class Stacked(nn.Module):
    """Blocks of any kind (made from their number), one after the other, between two linear layers."""

    def __init__(self, depth: int, block: Callable[[int], nn.Module] = Numbered):
        super().__init__()
        self.stem = nn.Linear(3, 2)
        self.blocks = nn.ModuleList(block(i) for i in range(depth))
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def volo(**settings) -> nn.Module:
    """timm's own constructor, because its named VOLOs do not let their layers be changed."""
    return VOLO(embed_dims=(12, 24, 24, 24), num_heads=(2, 2, 2, 2), mlp_ratio=2.0, num_classes=10, **settings)


HEADS = (1, 2, 2, 2)
SMALL: dict[str, tuple[Callable[..., nn.Module], dict]] = {
    "deit_tiny_patch16_224": (timm.create_model, dict(img_size=32, patch_size=4, embed_dim=12, depth=4, num_heads=2)),
    "volo_d1": (volo, dict(img_size=64, layers=(1, 2, 3, 1))),
    "swin_tiny_patch4_window7_224": (
        timm.create_model,
        dict(img_size=64, window_size=4, embed_dim=8, depths=(2, 6), num_heads=(1, 2)),
    ),
    "convnext_tiny": (timm.create_model, dict(depths=(1, 1, 4, 2), dims=(8, 12, 16, 20))),
    "cait_xxs24_224": (timm.create_model, dict(img_size=32, patch_size=4, embed_dim=12, depth=4, num_heads=2)),
    "xcit_nano_12_p16_224": (timm.create_model, dict(img_size=64, embed_dim=12, depth=4, num_heads=2)),
    "pvt_v2_b0": (timm.create_model, dict(depths=(1, 1, 4, 2), embed_dims=(8, 8, 16, 16), num_heads=HEADS)),
    "resnet50": (timm.create_model, dict(layers=(1, 3, 4, 1))),
}
"""timm's networks with few and narrow layers, each made anew by `small`."""


def small(name: str, **settings) -> tuple[nn.Module, int]:
    """A network of `SMALL`, and the side of the images it takes."""
    make, kwargs = SMALL[name]
    kwargs = kwargs | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make(**kwargs) if make is volo else make(name, num_classes=10, **kwargs)
    return model, kwargs.get("img_size", 64)


def image(batch: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


def deit(depth=6, **settings):
    return small("deit_tiny_patch16_224", depth=depth, img_size=16, **settings)[0]


def numbered(depth):
    """A stack whose blocks carry their numbers, without tracing it anew."""
    with traced_once():
        return morphogen.trace(Stacked(depth), torch.randn(2, 3))


def alive(model, stack):
    """The modules of a stack that are no stand-ins."""
    return [m for m in map(model.get_submodule, stack.blocks) if not isinstance(m, Bypass)]


def numbers(network):
    return [round(block.read.weight.mean().item()) for block in alive(network.model, network.stacks[0])]


def teacher(classes=3, seed=1):
    torch.manual_seed(seed)
    return timm.create_model("resnet10t", num_classes=classes).eval()


def tiny_volo(**settings):
    """16 tokens of an image of 64 x 64."""
    shape = {"layers": [1, 1], "embed_dims": [8, 8], "num_heads": [2, 2], "downsamples": (True, False)}
    return VOLO(
        **shape, outlook_attention=(True, False), img_size=64, stem_hidden_dim=8, **{"num_classes": 5} | settings
    ).train()

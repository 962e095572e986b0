"""Sizes that the model's code computes: shares of an axis, roots of a head's size, masks given as tensors."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen

from checks import assert_equals_masked_dense
from nets import image


class Half(nn.Module):
    """The first channels pass by, the others are convolved (ShuffleNetV2)."""

    def __init__(self, cut, left):
        super().__init__()
        self.cut, self.left = cut, left
        self.conv = nn.Sequential(nn.Conv2d(16 - left, 16 - left, 3, padding=1), nn.BatchNorm2d(16 - left), nn.ReLU())

    def forward(self, x):
        c = self.cut(x)
        return torch.cat([x[:, :c], self.conv(x[:, c:])], 1)


def halves(cut, left=8):
    stem = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(
        *stem, Half(cut, left), Half(cut, left), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)
    )


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: int(x.size(1) * 0.5),
        lambda x: x.size(1) // 2,
        lambda x: int(x.shape[1] / 2),
        lambda x: round(x.shape[1] * 0.5),
        lambda x: math.floor(x.shape[1] * 0.5),
    ],
)
def test_an_axis_cut_at_half_its_size_is_halved_in_both_parts(cut):
    net = morphogen.trace(halves(cut), image())
    assert sorted(group.size for group in net.groups) == [8, 8]
    target = net.subnetwork(alive={group.name: [0, 3, 6] for group in net.groups})
    assert_equals_masked_dense(net, target, image())
    assert net.model[0].weight.shape[0] == 6


@pytest.mark.parametrize("cut", [lambda x: int(x.size(1) * 0.75), lambda x: math.ceil(x.shape[1] * 0.7)])
def test_a_share_that_is_not_followed_stays_whole(cut):
    net = morphogen.trace(halves(cut, 12), image())
    assert "0.weight[0]" in {pinned.axis for pinned in net.pinned}
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert net.model(image()).shape == (2, 3)


class Attention(nn.Module):
    """Attention whose scale is written out."""

    def __init__(self, heads, scale):
        super().__init__()
        self.heads, self.size, self.scale = heads, 16 // heads, scale
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).view(*x.shape[:2], self.heads, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.o((self.scale(q @ k.transpose(-1, -2), self.size).softmax(-1) @ v).transpose(1, 2).flatten(2))


SCALES = {
    "divided by math.sqrt": lambda a, size: a / math.sqrt(size),
    "times a power": lambda a, size: a * size**-0.5,
    "times one by the root": lambda a, size: a * (1 / math.sqrt(size)),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("heads", [1, 4])
def test_a_scale_that_is_the_root_of_a_size_follows_it(heads, scale):
    model = nn.Sequential(nn.Linear(3, 16), Attention(heads, SCALES[scale]), nn.Linear(16, 2))
    net = morphogen.trace(model, torch.randn(2, 7, 3))
    sizes = {group.name: group.size for group in net.groups}
    assert sizes == ({"0": 16, "1.q": 16} if heads == 1 else {"0": 16, "1.heads": 4, "1.size": 4})
    half = {name: range(size // 2) for name, size in sizes.items()}
    morphogen.morph(net, net.subnetwork(alive=half))
    attention = net.model[1]
    assert attention.q.weight.shape[0] == attention.heads * attention.size == (8 if heads == 1 else 4)
    net.model(torch.randn(2, 7, 3))


class Text(nn.Module):
    """A causal mask kept in a buffer."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Embedding(9, 16), nn.Parameter(torch.randn(6, 16))
        self.attn, self.head = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 5)
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1), persistent=False)
        self.register_buffer("bias", torch.randn(4, 6, 6))

    def forward(self, ids):
        x = self.embed(ids) + self.position
        x = x + self.attn(x, x, x, need_weights=False, attn_mask=self.mask)[0]
        q = x.unflatten(2, (self.attn.num_heads, -1)).transpose(1, 2)
        return self.head(x + F.scaled_dot_product_attention(q, q, q, attn_mask=self.bias).transpose(1, 2).flatten(2))


def test_masks_and_biases_keep_their_token_axes():
    model, ids = Text(), torch.randint(9, (2, 6))
    net = morphogen.trace(model, ids)
    assert {"mask[0]", "mask[1]", "bias[1]", "bias[2]"}.isdisjoint(m for group in net.groups for m in group.members)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.mask.shape == (6, 6) and model.bias.shape == (2, 6, 6) and model(ids).shape == (2, 6, 5)

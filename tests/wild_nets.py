"""Small nets built like other people's: what they keep, how they compute sizes, what they are called with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from wild_sizes import SIZES


class FrozenDict(dict):
    """A configuration as diffusers keeps it: entries are attributes too, and nothing may be changed."""

    def __init__(self, **entries):
        super().__init__(entries)
        for key, value in entries.items():
            setattr(self, key, value)

    def _refuse(self, *args, **kwargs):
        raise TypeError("a FrozenDict cannot be changed")

    update = pop = clear = setdefault = __delitem__ = _refuse


@dataclass
class Sample:
    """What a denoiser returns."""

    sample: torch.Tensor


torch.utils._pytree.register_dataclass(Sample)


class Denoiser(nn.Module):
    """A U-Net of two levels that is told the time step, with a frozen configuration (diffusers)."""

    def __init__(self):
        super().__init__()
        self.config = FrozenDict(channels=(8, 16), groups=4)
        first, second = self.config.channels
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, second))
        self.conv_in = nn.Conv2d(3, first, 3, padding=1)
        self.down = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(self.config.groups, second)
        self.mid = nn.Conv2d(second, second, 3, padding=1)
        self.up = nn.Conv2d(second, first, 3, padding=1)
        self.conv_out = nn.Conv2d(2 * first, 3, 3, padding=1)

    def forward(self, sample, timestep):
        angles = timestep[:, None].float() * torch.exp(-torch.arange(4) / 4)
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1).to(sample.dtype))
        skip = self.conv_in(sample)
        x = self.norm(self.down(skip)) + time[:, :, None, None]
        x = x + self.mid(F.silu(x))
        x = self.up(F.interpolate(x, scale_factor=2.0))
        return Sample(self.conv_out(torch.cat([x, skip], 1)))


class Attention(nn.Module):
    """Heads of a fixed size; a mask or a bias may come from elsewhere."""

    def __init__(self, dim=24, heads=4):
        super().__init__()
        self.num_heads, self.head_size = heads, dim // heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def split(self, x):
        return x.view(x.shape[0], -1, self.num_heads, self.head_size).transpose(1, 2)

    def forward(self, x, context=None, mask=None, bias=None):
        context = x if context is None else context
        q, k, v = self.split(self.query(x)), self.split(self.key(context)), self.split(self.value(context))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_size)
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e4)
        x = (scores.softmax(-1) @ v).transpose(1, 2)
        return self.out(x.reshape(x.shape[0], x.shape[1], -1))


class Layer(nn.Module):
    """Attention and a perceptron, normalised before each."""

    def __init__(self, dim=24):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 32), nn.GELU(), nn.Linear(32, dim))

    def forward(self, x, mask=None):
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.mlp(self.norm2(x))


class Reader(nn.Module):
    """Token numbers under a mask that is made of two (BERT, ModernBERT)."""

    def __init__(self, causal=False):
        super().__init__()
        self.causal = causal
        self.words, self.positions = nn.Embedding(20, 24), nn.Embedding(16, 24)
        self.register_buffer("position_ids", torch.arange(16).expand(1, -1), persistent=False)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def hidden(self, input_ids, attention_mask):
        length = input_ids.shape[1]
        x = self.words(input_ids) + self.positions(self.position_ids[:, :length])
        here = torch.arange(length, device=input_ids.device)
        allowed = (here[None] <= here[:, None]) if self.causal else torch.ones(length, length, dtype=torch.bool)
        mask = attention_mask.bool()[:, None, None] & allowed[None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def forward(self, input_ids, attention_mask):
        return {"logits": self.head(self.hidden(input_ids, attention_mask)[:, 0])}


class Writer(nn.Module):
    """Rotary positions, fewer key heads than query heads, gated perceptrons (Llama)."""

    def __init__(self, dim=32, heads=4, key_heads=2):
        super().__init__()
        self.head_dim, self.groups = dim // heads, heads // key_heads
        self.words = nn.Embedding(20, dim)
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.q_proj = nn.Linear(dim, heads * self.head_dim, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(dim, key_heads * self.head_dim, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(heads * self.head_dim, dim, bias=False)
        self.gate, self.up, self.down = nn.Linear(dim, 40), nn.Linear(dim, 40), nn.Linear(40, dim)
        self.head = nn.Linear(dim, 20, bias=False)
        inv_freq = 1.0 / (100.0 ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def rotate(self, x):
        angles = torch.arange(x.shape[2])[:, None] * self.inv_freq[None]
        angles = torch.cat([angles, angles], -1).to(x.dtype)
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    def forward(self, input_ids):
        x = self.words(input_ids)
        h = self.norm1(x)
        shape = (*h.shape[:-1], -1, self.head_dim)
        q, k, v = (proj(h).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.rotate(q), self.rotate(k)
        k, v = (t[:, :, None].expand(-1, -1, self.groups, -1, -1).reshape(t.shape[0], -1, *t.shape[2:]) for t in (k, v))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.head_dim**-0.5)
        x = x + self.o_proj(h.transpose(1, 2).reshape(*x.shape[:-1], -1))
        h = self.norm2(x)
        return self.head(x + self.down(F.silu(self.gate(h)) * self.up(h)))


class Captured(nn.Module):
    """What its stages return is captured by hooks that the first forward pass puts on (transformers 5)."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)])
        self.heads = nn.ModuleList([nn.Conv2d(8, 6, 1), nn.Conv2d(12, 6, 1)])
        self.classify = nn.Conv2d(12, 4, 1)
        self.captured, self.hooked = [], False

    def forward(self, x):
        if not self.hooked:
            for stage in self.stages:
                stage.register_forward_hook(lambda module, args, output: self.captured.append(output))
            self.hooked = True
        self.captured.clear()
        for stage in self.stages:
            x = F.relu(stage(x))
        seen = [head(each) for head, each in zip(self.heads, self.captured, strict=True)]
        self.captured.clear()
        seen[1] = F.interpolate(seen[1], size=seen[0].shape[-2:], mode="bilinear", align_corners=False)
        return self.classify(torch.cat(seen, 1))


class Detector(nn.Module):
    """Strides that are plain tensors, read as numbers; anchors left from the last forward pass (YOLO)."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.boxes = nn.ModuleList(nn.Sequential(nn.Conv2d(c, 8, 1), nn.SiLU(), nn.Conv2d(8, 4, 1)) for c in (8, 12))
        self.stride = torch.tensor([2.0, 4.0])
        self.anchors, self.shape = torch.empty(0), None

    def forward(self, x):
        maps = [F.silu(self.stem(x))]
        maps.append(F.silu(self.down(maps[0])))
        if self.shape != x.shape:
            grids = []
            for i, each in enumerate(maps):
                height, width = each.shape[-2:]
                size = float(self.stride[i])
                grids.append((torch.arange(height)[:, None] * width + torch.arange(width)[None]).flatten() * size)
            self.anchors, self.shape = torch.cat(grids), x.shape
        found = torch.cat([head(each).flatten(2) for head, each in zip(self.boxes, maps, strict=True)], 2)
        return found + self.anchors.to(found.dtype)


class Volume(nn.Module):
    """Two levels of 3-D convolutions, instance norm, a skip (nnU-Net, MONAI)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.InstanceNorm3d(6, affine=True), nn.LeakyReLU())
        self.second = nn.Sequential(nn.Conv3d(6, 10, 2, stride=2), nn.InstanceNorm3d(10, affine=True), nn.LeakyReLU())
        self.up, self.last = nn.ConvTranspose3d(10, 6, 2, stride=2), nn.Conv3d(12, 2, 1)

    def forward(self, x):
        skips = [self.first(x)]
        x = self.up(self.second(skips[-1]))
        return self.last(torch.cat([x, skips.pop()], 1))


class Pairs(nn.Module):
    """Images and sentences, compared (CLIP)."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(24))
        self.seen, self.read = Layer(), Reader(causal=True)
        del self.read.head
        self.image_projection, self.text_projection = (nn.Parameter(torch.randn(24, 10) / 5) for _ in range(2))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, pixel_values, input_ids, attention_mask):
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = self.seen(torch.cat([self.cls.expand(x.shape[0], 1, -1), x], 1))[:, 0] @ self.image_projection
        last = input_ids.argmax(-1)
        text = self.read.hidden(input_ids, attention_mask)
        y = text[torch.arange(text.shape[0]), last] @ self.text_projection
        x, y = x / x.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True)
        return self.logit_scale.exp() * x @ y.t()


class Translator(nn.Module):
    """A decoder that reads an encoder, a bias of relative positions (T5)."""

    def __init__(self):
        super().__init__()
        self.words, self.bias = nn.Embedding(20, 24), nn.Embedding(7, 4)
        self.encoder, self.decoder, self.cross = Attention(), Attention(), Attention()
        self.norms = nn.ModuleList(nn.RMSNorm(24) for _ in range(3))
        self.wi, self.wo, self.head = nn.Linear(24, 32), nn.Linear(32, 24), nn.Linear(24, 20, bias=False)

    def relative(self, length):
        here = torch.arange(length)
        buckets = (here[None] - here[:, None]).clamp(-3, 3) + 3
        return self.bias(buckets).permute(2, 0, 1)[None]

    def forward(self, input_ids, decoder_input_ids):
        x = self.words(input_ids)
        x = x + self.encoder(self.norms[0](x), bias=self.relative(x.shape[1]))
        y = self.words(decoder_input_ids)
        y = y + self.decoder(self.norms[1](y), bias=self.relative(y.shape[1]))
        y = y + self.cross(self.norms[2](y), context=x)
        return self.head(y + self.wo(F.relu(self.wi(y))) * 24**-0.5)


class Flow(nn.Module):
    """A recurrent update, three times, on correlations that a list outside the modules keeps (RAFT)."""

    def __init__(self):
        super().__init__()
        self.features, self.context = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.motion = nn.Conv2d(64 + 2, 6, 1)
        self.gate, self.candidate = nn.Conv2d(18, 12, 3, padding=1), nn.Conv2d(18, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 2, 3, padding=1)
        self.pyramid = []

    def forward(self, first, second):
        one, two = self.features(torch.cat([first, second])).chunk(2)
        n, c, h, w = one.shape
        correlation = (one.flatten(2).transpose(1, 2) @ two.flatten(2)) / c**0.5
        self.pyramid = [correlation.transpose(1, 2).reshape(n, h * w, h, w)]
        hidden, flow = torch.tanh(self.context(first)), one.new_zeros(n, 2, h, w)
        for _ in range(3):
            flow = flow.detach()
            x = torch.cat([hidden, F.relu(self.motion(torch.cat([self.pyramid[0], flow], 1)))], 1)
            gate = torch.sigmoid(self.gate(x))
            hidden = (1 - gate) * hidden + gate * torch.tanh(self.candidate(x))
            flow = flow + self.head(hidden)
        return flow


class Speech(nn.Module):
    """Convolutions over a wave, positions by a grouped convolution under weight norm (wav2vec 2.0)."""

    def __init__(self):
        super().__init__()
        self.wave = nn.ModuleList([nn.Conv1d(1, 8, 10, stride=5, bias=False), nn.Conv1d(8, 12, 3, stride=2)])
        self.group_norm, self.norm = nn.GroupNorm(8, 8), nn.LayerNorm(12)
        self.project = nn.Linear(12, 24)
        self.positions = weight_norm(nn.Conv1d(24, 24, 4, padding=2, groups=4), dim=2)
        self.layer, self.head = Layer(), nn.Linear(24, 6)

    def forward(self, input_values):
        x = F.gelu(self.group_norm(self.wave[0](input_values[:, None])))
        x = self.project(self.norm(F.gelu(self.wave[1](x)).transpose(1, 2)))
        x = x + F.gelu(self.positions(x.transpose(1, 2))[:, :, :-1]).transpose(1, 2)
        return self.head(self.layer(x)).log_softmax(-1)


def ids(length=6):
    return torch.randint(1, 20, (2, length))


def images(size=8):
    return torch.randn(2, 3, size, size)


def text():
    return {"input_ids": ids(), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


WILD = {
    "denoiser": (Denoiser, lambda: {"sample": images(), "timestep": torch.tensor([1, 5])}),
    "reader": (Reader, text),
    "writer": (Writer, lambda: {"input_ids": ids()}),
    "captured": (Captured, images),
    "detector": (Detector, images),
    "volume": (Volume, lambda: torch.randn(2, 1, 8, 8, 8)),
    "pairs": (Pairs, lambda: {**text(), "pixel_values": images()}),
    "translator": (Translator, lambda: {"input_ids": ids(), "decoder_input_ids": ids(4)}),
    "flow": (Flow, lambda: (images(16), images(16))),
    "speech": (Speech, lambda: {"input_values": torch.randn(2, 200)}),
    **{name: (net, images) for name, net in SIZES.items()},
}

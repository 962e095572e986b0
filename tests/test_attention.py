"""Heads and head sizes: attention in its forms, and the numbers that its code keeps."""

import pytest
import torch
from timm.models.volo import VOLO
from torch import nn
from torch.nn import functional as F

import morphogen
from morphogen.errors import MorphogenError

from checks import assert_equals_masked_dense

WIDTH, HEADS = 24, 4


def tokens():
    return torch.randn(2, 5, 6)


class Block(nn.Module):
    """linear - attention - linear, of 4 heads of size 6."""

    def __init__(self, attend):
        super().__init__()
        self.num_heads, self.head_dim, self.scale = HEADS, WIDTH // HEADS, 0.4
        self.embed = nn.Linear(6, WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 5)
        self.num_kv, self.kv = 2, nn.Linear(WIDTH, 2 * 2 * WIDTH // HEADS)
        self.table = nn.Parameter(torch.randn(9, HEADS))
        self.mix = nn.Conv2d(HEADS, HEADS, 1)
        self.register_buffer("index", (torch.arange(5)[:, None] - torch.arange(5) + 4).clone())
        self.attend = attend

    def forward(self, x):
        return self.proj(self.attend(self, self.embed(x)))


def fused(net, x):
    b, n, _ = x.shape
    q, k, v = net.qkv(x).reshape(b, n, 3, net.num_heads, net.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, net.num_heads * net.head_dim)


def by_hand(net, x):
    b, n, c = x.shape
    q, k, v = net.qkv(x).reshape(b, n, 3, net.num_heads, c // net.num_heads).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-2, -1) * net.scale).softmax(-1)
    return (attention @ v).transpose(1, 2).reshape(b, n, c)


def chunked(net, x):
    q, k, v = (t.unflatten(-1, (net.num_heads, -1)).transpose(1, 2) for t in net.qkv(x).chunk(3, dim=-1))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def summed(net, x):
    q, k, v = net.qkv(x).view(*x.shape[:2], 3, net.num_heads, -1).unbind(2)
    attention = torch.einsum("bnhd,bmhd->bhnm", q, k).mul(net.scale).softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", attention, v).flatten(2)


def grouped(net, x):
    """Two heads of keys and values for four of queries."""
    kv = 2
    q, k, v = net.qkv(x).split([WIDTH, WIDTH, WIDTH], dim=-1)
    q = q.unflatten(-1, (net.num_heads, net.head_dim)).transpose(1, 2)
    k, v = (t[..., : kv * net.head_dim].unflatten(-1, (kv, net.head_dim)).transpose(1, 2) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


def two_groups(net, x):
    """As `grouped`, with the number of groups kept by the module."""
    b, n, _ = x.shape
    q = net.qkv(x)[..., : net.num_heads * net.head_dim].reshape(b, n, net.num_heads, net.head_dim).transpose(1, 2)
    k, v = net.kv(x).reshape(b, n, 2, net.num_kv, net.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


def with_positions(net, x):
    b, n, _ = x.shape
    q, k, v = net.qkv(x).reshape(b, n, 3, net.num_heads, net.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    bias = net.table[net.index.view(-1)].view(n, n, -1).permute(2, 0, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None]).transpose(1, 2).flatten(2)


def talking(net, x):
    b, n, c = x.shape
    q, k, v = net.qkv(x).reshape(b, n, 3, net.num_heads, c // net.num_heads).permute(2, 0, 3, 1, 4)
    attention = net.mix(net.mix(q @ k.transpose(-2, -1)).softmax(-1))
    return (attention @ v).transpose(1, 2).reshape(b, n, c)


def cross_covariance(net, x):
    b, n, c = x.shape
    q, k, v = net.qkv(x).reshape(b, n, 3, net.num_heads, c // net.num_heads).permute(2, 0, 3, 4, 1)
    attention = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1)
    return (attention @ v).permute(0, 3, 1, 2).reshape(b, n, c)


def under_autocast(net, x):
    with torch.autocast("cpu", enabled=False):
        return fused(net, x)


FORMS = [fused, by_hand, chunked, summed, with_positions, talking, cross_covariance, under_autocast]


@pytest.mark.parametrize("attend", FORMS, ids=lambda form: form.__name__)
def test_heads_leave_whole_and_the_rest_computes_the_same(attend):
    model = Block(attend).double()
    net = morphogen.trace(model, tokens().double())
    heads = next(group for group in net.groups if group.size == HEADS)
    assert not heads.inner
    target = net.subnetwork(alive={heads.name: [0, 2]})
    assert_equals_masked_dense(net, target, tokens().double())
    assert model.num_heads == 2 and model.qkv.out_features == 36 and model.proj.in_features == 12
    morphogen.morph(net, net.dense)
    assert model.num_heads == HEADS and model.qkv.weight.shape == (72, 24)


def test_a_share_of_width_is_one_of_heads():
    model = Block(fused)
    net = morphogen.trace(model, tokens())
    sizes = {group.name: (group.size, group.inner) for group in net.groups}
    assert sizes == {"embed": (24, False), "num_heads": (4, False), "head_dim": (6, True)}
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert (model.num_heads, model.head_dim, model.qkv.out_features, model.qkv.in_features) == (2, 6, 36, 12)
    morphogen.morph(net, net.subnetwork(width={"head_dim": 0.5}))
    assert (model.num_heads, model.head_dim, model.qkv.out_features, model.qkv.in_features) == (4, 3, 36, 24)
    # Position 1 of head 2 of the keys: 24 for the queries, 2 heads of 6, and 1.
    morphogen.morph(net, net.dense)
    row = model.qkv.weight[24 + 2 * 6 + 1].clone()
    morphogen.morph(net, net.subnetwork(alive={"num_heads": [2], "head_dim": [1, 3]}))
    assert torch.equal(model.qkv.weight[2], row)  # two rows of queries before it


def test_where_the_code_divides_the_width_by_the_heads_the_width_goes_with_them():
    model = Block(by_hand)
    net = morphogen.trace(model, tokens())
    assert {group.name: (group.size, group.inner) for group in net.groups} == {
        "num_heads": (4, False),
        "embed.inner": (6, True),
    }
    morphogen.morph(net, net.subnetwork(width=0.25))
    assert model.embed.out_features == 6 and model.qkv.out_features == 18 and model.num_heads == 1


def test_sizes_written_in_stay():
    """The keys and values of `grouped` are cut at positions that stand in the code."""
    net = morphogen.trace(Block(grouped), tokens())
    assert all(group.name == "embed" for group in net.groups)


def test_grouped_queries_leave_with_their_keys_and_values():
    model = Block(two_groups).double()
    net = morphogen.trace(model, tokens().double())
    groups = next(group for group in net.groups if group.size == 2)
    assert_equals_masked_dense(net, net.subnetwork(alive={groups.name: [1]}), tokens().double())
    assert (model.num_heads, model.num_kv, model.kv.out_features, model.proj.in_features) == (2, 1, 12, 12)


@pytest.mark.parametrize("norm_first", [False, True])
def test_pytorchs_encoder(norm_first):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.Sequential(
        nn.Linear(6, WIDTH), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, 3)
    )
    net = morphogen.trace(model, tokens())
    assert {group.size for group in net.groups if not group.inner} == {HEADS, 32}
    optimizer = torch.optim.AdamW(model.parameters())
    for part in (net.subnetwork(width=0.5), net.dense):
        morphogen.morph(net, part, optimizer=optimizer)
        model.train()(tokens()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()(tokens())
    fresh = nn.Sequential(
        nn.Linear(6, WIDTH), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, 3)
    )
    fresh.load_state_dict(model.state_dict())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
def test_recurrent_layers(kind, both):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn = nn.Linear(6, 8), kind(8, 10, 2, batch_first=True, bidirectional=both)
            self.fc = nn.Linear(10 * (1 + both), 3)

        def forward(self, x):
            return self.fc(self.rnn(self.embed(x))[0])

    model = Net().double()
    net = morphogen.trace(model, tokens().double())
    assert {group.size for group in net.groups} == {8, 10}
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), tokens().double())
    assert model.rnn.hidden_size == 5 and model.rnn.input_size == 4


def test_outlook_attention():
    sizes = {"embed_dims": (24, 48, 48, 48), "num_heads": (2, 4, 4, 4), "mlp_ratio": (2, 2, 2, 2)}
    model = VOLO((1, 1, 1, 1), img_size=64, outlook_attention=(True, False, False, False), **sizes)
    net = morphogen.trace(model, torch.randn(1, 3, 64, 64))
    assert not net.structure.unread
    before = sum(p.numel() for p in net.model.parameters())
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert sum(p.numel() for p in net.model.parameters()) < 0.4 * before
    net.model.train()(torch.randn(2, 3, 64, 64))


def test_heads_that_are_kept_where_nothing_can_rewrite_them_are_refused_or_pinned():
    def made_with(count):
        def attend(net, x, heads=count):
            b, n, c = x.shape
            q, k, v = net.qkv(x).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)

        return attend

    model = Block(made_with(4))
    net = morphogen.trace(model, tokens())
    assert all(group.size != 4 for group in net.groups)  # they stay; the size of each may change
    try:
        morphogen.morph(net, net.subnetwork(width=0.5))
    except MorphogenError:
        pytest.fail("what can change should run")
    model(tokens())

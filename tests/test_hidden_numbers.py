"""Numbers of a model's code in places where they count nothing, or count something else than they seem to."""

import enum
import functools
import math
import operator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen

from checks import assert_equals_masked_dense, assert_function_preserved
from nets import image


class Heads(nn.Module):
    """linear - attention - something with the number of heads - linear."""

    def __init__(self, use):
        super().__init__()
        self.h, self.use = 4, use
        self.stem, self.qkv, self.out = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 3)
        self.table = nn.Parameter(torch.arange(24.0).view(8, 3))
        self.register_buffer("steps", torch.arange(5.0)[None, :, None])

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.h, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.use(self, self.out(y))


USES = {
    "an index": lambda net, y: net.table[net.h] + 0 * y,
    "a shift": lambda net, y: torch.roll(net.steps + 0 * y, net.h, 1),
    "a tensor": lambda net, y: (net.steps + 0 * y) / torch.tensor(net.h),
    "a fill value": lambda net, y: 0 * y + torch.full((), net.h),
    "beta": lambda net, y: F.softplus(0 * y, net.h),
    "a quotient": lambda net, y: F.leaky_relu(0 * y, 1 / net.h),
    "a share": lambda net, y: (net.steps + 0 * y) * (net.h * 0.25),
    "a factor": lambda net, y: (net.steps + 0 * y) * net.h,
}


@pytest.mark.parametrize("use", USES)
def test_heads_whose_number_is_used_as_a_value_stay(use):
    model, x = Heads(USES[use]).eval(), torch.randn(2, 5, 8)
    expected = model(x)
    net = morphogen.trace(model, x)
    assert "h" not in {group.name for group in net.groups}
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.h == 4 and torch.equal(model(x), expected)


def test_heads_move_where_their_number_is_used_as_none():
    model, x = Heads(lambda net, y: y), torch.randn(2, 5, 8)
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(alive={"h": [1, 3]}))
    assert model.h == 2 and model(x).shape == (2, 5, 3)


@functools.lru_cache
def shape_of(width, heads):
    return heads, width // heads


class Cached(nn.Module):
    """Two blocks of attention, whose shapes are kept in one cache for all."""

    def __init__(self):
        super().__init__()
        self.stem, self.out = nn.Linear(8, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(nn.ModuleDict({"qkv": nn.Linear(16, 48), "out": nn.Linear(16, 16)}) for _ in "12")
        for block in self.blocks:
            block.width, block.heads = 16, 4

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            parts = block["qkv"](x).chunk(3, -1)
            q, k, v = (t.view(*t.shape[:2], *shape_of(block.width, block.heads)).transpose(1, 2) for t in parts)
            x = x + block["out"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.out(x)


@pytest.mark.parametrize("called_before", [False, True])
def test_a_cache_does_not_hand_on_numbers_of_another_origin(called_before):
    shape_of.cache_clear()
    x = torch.randn(2, 5, 8)
    for _ in range(2):  # the second model meets what the first one has left
        model = Cached()
        if called_before:
            model(x)
        net = morphogen.trace(model, x)
        names = {group.name for group in net.groups}
        assert names >= {f"blocks.{i}.{name}" for i in (0, 1) for name in ("heads", "qkv.inner")}, names
        morphogen.morph(net, net.subnetwork(width=0.5))
        assert [block.heads for block in model.blocks] == [2, 2]
        morphogen.morph(net, net.dense)
        assert model(x).shape == (2, 5, 3)


class Positions(nn.Module):
    """Tables for longer inputs than the example."""

    def __init__(self):
        super().__init__()
        self.stem, self.out = nn.Linear(8, 16), nn.Linear(16, 5)
        self.pos, self.embedding = nn.Parameter(torch.randn(1, 32, 16)), nn.Embedding(32, 16)
        self.register_buffer("ids", torch.arange(32))

    def forward(self, x):
        length = x.size(1)
        return self.out(self.stem(x) + self.pos[:, :length] + self.embedding(self.ids[:length]))


def test_tables_for_longer_inputs_stay_as_long():
    model = Positions()
    net = morphogen.trace(model, torch.randn(2, 12, 8))
    assert [group.name for group in net.groups] == ["stem"]
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.pos.shape == (1, 32, 8) and model(torch.randn(2, 32, 8)).shape == (2, 32, 5)


def per_head(net, y):
    return y * net.gain.repeat(net.h)


def grouped(net, y):
    kv = net.kv(y).view(*y.shape[:2], 2, 2, 4).permute(2, 0, 3, 1, 4)
    q = y.view(*y.shape[:2], net.h, -1).transpose(1, 2)
    k, v = (t.repeat(1, net.h // net.groups, 1, 1) for t in kv)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def longer(net, y):
    return (y.repeat(1, 3, 1) + net.gain.repeat(4)).mean(1, keepdim=True)


@pytest.mark.parametrize("use", [per_head, grouped, longer])
def test_an_axis_repeated_as_often_as_there_are_heads(use):
    class Repeats(nn.Module):
        def __init__(self):
            super().__init__()
            self.h, self.groups = 4, 2
            self.stem, self.out = nn.Linear(8, 16), nn.Linear(16, 3)
            self.kv, self.gain = nn.Linear(16, 16), nn.Parameter(torch.randn(4))

        def forward(self, x):
            y = self.stem(x)
            y = use(self, y.view(*x.shape[:2], self.h, -1).transpose(1, 2).transpose(1, 2).flatten(2))
            return self.out(y)

    x = torch.randn(2, 5, 8)
    net = morphogen.trace(Repeats(), x)
    target = net.subnetwork(alive={group.name: range(1, group.size) for group in net.groups})
    if use is per_head:
        assert [(group.name, group.size) for group in net.groups] == [("stem.inner", 4), ("h", 4)]
        assert_equals_masked_dense(net, target, x)
    else:
        morphogen.morph(net, target)
        net.model(x)


class Gram(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(16, 5)

    def forward(self, x):
        x = self.conv(x).flatten(2)
        return self.fc(torch.bmm(x, x.mT).flatten(1))


@pytest.mark.parametrize("alive", [(0, 2), (1, 3), (2,), (1, 2, 3)])
def test_an_axis_times_itself_comes_back_from_any_channels(alive):
    net = morphogen.trace(Gram(), image())
    morphogen.morph(net, net.subnetwork(alive={"conv": alive}))
    kept = net.model.fc.weight.detach().clone()
    morphogen.morph(net, net.dense)
    again = net.model.fc.weight.view(5, 4, 4)[:, alive][:, :, alive]
    assert torch.equal(again.flatten(1), kept)


def test_the_largest_of_channels_is_one_of_fewer_where_its_place_is_not_used():
    class Largest(nn.Module):
        def __init__(self, place):
            super().__init__()
            self.conv, self.fc, self.place = nn.Conv2d(3, 8, 1), nn.Linear(8, 2), place

        def forward(self, x):
            x = self.conv(x)
            largest, place = torch.max(x, 1)
            return self.fc((x * (largest + place if self.place else largest)[:, None]).mean((2, 3)))

    assert [g.name for g in morphogen.trace(Largest(False), image()).groups] == ["conv"]
    assert not morphogen.trace(Largest(True), image()).groups


def test_attributes_with_an_underscore_and_spectral_norm():
    class Hidden(Heads):
        def __init__(self):
            super().__init__(None)
            self._h = self.__dict__.pop("h")
            nn.utils.parametrizations.spectral_norm(self.out)

        def forward(self, x):
            x = self.stem(x)
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, self._h, -1).permute(2, 0, 3, 1, 4)
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    model, x = Hidden(), torch.randn(2, 5, 8)
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model._h == 2 and model.out.weight.shape == (3, 8) and model.train()(x).shape == (2, 5, 3)


def test_a_fixed_filter_read_as_a_weight_comes_back_as_it_was():
    class Blur(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)
            self.register_buffer("filter", torch.rand(1, 1, 3, 3).expand(8, 1, 3, 3).clone(), persistent=False)

        def forward(self, x):
            x = self.conv(x)
            return self.fc(F.conv2d(x, self.filter, groups=x.shape[1]).mean((2, 3)))

    model = Blur()
    before = model.filter.clone()
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.filter.shape == (4, 1, 3, 3)
    morphogen.morph(net, net.dense)
    assert torch.equal(model.filter, before)


def test_what_a_compiler_has_made_of_a_model_does_not_run_on_fake_tensors():
    called = []

    def backend(module, inputs):
        def run(*args):
            called.append(any(isinstance(arg, torch._subclasses.FakeTensor) for arg in args))
            return module(*args)

        return run

    torch._dynamo.reset()
    model = torch.compile(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)), backend=backend)
    model(image())
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert called == [False]
    assert model(image()).shape[1] == 4


class Rest(nn.Module):
    """A part of the channels goes another way than the rest: `split([part, dim - part])`."""

    def __init__(self):
        super().__init__()
        self.dim, self.part = 16, 6
        self.stem, self.gate, self.out = nn.Conv2d(3, 16, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        part, rest = self.stem(x).split([self.part, self.dim - self.part], 1)
        return self.out(torch.cat([self.gate(part), rest], 1))


def test_a_difference_of_numbers_counts_the_rest():
    net = morphogen.trace(Rest(), image())
    assert [group.size for group in net.groups] == [6, 10, 6]
    first, rest, gate = (group.name for group in net.groups)
    target = net.subnetwork(alive={first: [1, 4], rest: [0, 2, 9], gate: [5]})
    assert_equals_masked_dense(net, target, image())
    assert (net.model.dim, net.model.part, net.model.gate.out_channels) == (5, 2, 1)


@pytest.mark.parametrize("where", ["an attribute", "a shape"])
def test_code_that_looks_a_number_up_is_read_without_origins(where):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.kind, self.conv, self.fc = 2, nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

        def forward(self, x):
            x = self.conv(x)
            factor = {2: 0.5, 8: 2.0}[self.kind if where == "an attribute" else x.shape[2]]
            return self.fc((x * factor).mean((2, 3)))

    model = Table()
    net = morphogen.trace(model, image())
    assert [group.name for group in net.groups] == ["conv"]
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model(image()).shape == (2, 2)


class Scaled(nn.Module):
    """Attention whose heads are counted with the batch, so that at half width they are half as large."""

    def __init__(self, attend):
        super().__init__()
        self.h, self.attend = 4, attend
        self.stem, self.qkv, self.out = nn.Linear(8, 64), nn.Linear(64, 192), nn.Linear(64, 3)

    def forward(self, x):
        x = self.qkv(self.stem(x)).mT
        n, width, length = x.shape
        size = width // (3 * self.h)
        q, k, v = (t.reshape(n * self.h, size, length) for t in x.chunk(3, 1))
        y = v @ self.attend(q, k, size).softmax(-1).mT
        return self.out(y.reshape(n, -1, length).mT)


SCALES = {
    "a root of a root": lambda q, k, size: (q / math.sqrt(math.sqrt(size))).mT @ (k / math.sqrt(math.sqrt(size))),
    "one by a root of a root": lambda q, k, size: (q * (1 / math.sqrt(math.sqrt(size)))).mT @ k,
    "a power": lambda q, k, size: (q * size**-0.25).mT @ (k * size**-0.25),
}


@pytest.mark.parametrize("attend", SCALES)
def test_queries_and_keys_may_be_scaled_by_a_fourth_root_each(attend):
    model, x = Scaled(SCALES[attend]), torch.randn(2, 5, 8)
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.qkv.weight.shape == (96, 32)
    narrow = Scaled(SCALES[attend])
    narrow.stem, narrow.qkv, narrow.out = nn.Linear(8, 32), nn.Linear(32, 96), nn.Linear(32, 3)
    narrow.load_state_dict(model.state_dict())
    assert torch.equal(model(x), narrow(x))


def test_a_size_to_another_power_stays():
    model, x = Scaled(lambda q, k, size: q.mT @ k * size**-0.3).eval(), torch.randn(2, 5, 8)
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.qkv.weight.shape == (192, 32) and model(x).shape == (2, 5, 3)


class Turned(nn.Module):
    """Sizes read off what a property returns."""

    def __init__(self, turn):
        super().__init__()
        self.stem, self.out, self.turn = nn.Linear(8, 16), nn.Linear(16, 3), turn

    def forward(self, x):
        x = self.turn(self.stem(x))
        channels, n = x.shape
        return self.out(x.reshape(channels // 2, 2, n).flip(1).reshape(channels, n).transpose(0, 1))


TURNS = {"T": lambda x: x.T, "mT": lambda x: x.mT, "H": lambda x: x.H, "real": lambda x: x.transpose(0, 1).real}


@pytest.mark.parametrize("turn", TURNS)
def test_sizes_of_a_turned_tensor_follow(turn):
    model, x = Turned(TURNS[turn]), torch.randn(5, 8)
    net = morphogen.trace(model, x)
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    assert model.stem.weight.shape == (8, 8)


class Gates(nn.Module):
    """Layers that are given their part of one tensor, `c[:, i * n : i * n + n]` (WaveGlow, VITS); gates are the last
    features, or all but the first."""

    def __init__(self, n=16, negative=False):
        super().__init__()
        self.n, self.negative = n, negative
        self.first, self.given, self.last = nn.Linear(6, 16), nn.Linear(6, 3 * 2 * 16), nn.Linear(16, 3)
        self.layers = nn.ModuleList(nn.Linear(16, 32) for _ in range(3))

    def forward(self, x):
        c, x = self.given(x), self.first(x)
        for i, layer in enumerate(self.layers):
            start = i * 2 * self.n
            z = layer(x) + c[:, start : start + 2 * self.n]
            x = x + z[:, : self.n].tanh() * (z[:, -self.n :] if self.negative else z[:, self.n :]).sigmoid()
        return self.last(x.view(len(x), self.n))


@pytest.mark.parametrize("number", [16, np.int64(16), np.prod((4, 4))], ids=["int", "int64", "prod"])
@pytest.mark.parametrize("negative", [False, True])
def test_parts_that_begin_at_none_and_at_the_end_and_numbers_of_numpy(number, negative):
    model, x = Gates(number, negative).double(), torch.randn(4, 6).double()
    net = morphogen.trace(model, x)
    assert [group.size for group in net.groups] == [16]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.n == 8 and type(model.n) is int
    assert_function_preserved(net, net.dense, x, "quiet")


def test_pairs_of_numbers_of_numpy():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = (np.int64(4), np.int64(16))
            self.first, self.last = nn.Linear(6, 64), nn.Linear(16, 3)

        def forward(self, x):
            return self.last(self.first(x).view(len(x), *self.sizes).relu())

    model, x = Folded(), torch.randn(2, 6)
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model(x).shape == (2, 4, 3) and model.last.in_features == 8


class Kind(enum.IntEnum):
    PLAIN = 0
    TWICE = 1


def test_members_of_an_enumeration_are_no_sizes():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.kind = Kind.TWICE
            self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.second(x) if self.kind is Kind.TWICE and self.kind.name == "TWICE" else x)

    model, x = Chosen(), torch.randn(2, 6)
    net = morphogen.trace(model, x)
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.kind is Kind.TWICE and model.second.weight.shape == (4, 4)


@pytest.mark.parametrize(
    "use",
    [
        lambda net, x: F.pad(x, (-net.one, net.one)),
        lambda net, x: x[:, -(net.heads * net.size) :],
        lambda net, x: x[:, net.heads - net.heads * net.size :],
        lambda net, x: x[:, operator.neg(-net.heads) :],
    ],
    ids=["a shift", "a product from the end", "a difference", "twice"],
)
def test_numbers_below_nothing(use):
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.size, self.one = 2, 4, 1
            self.first, self.last = nn.Linear(6, 12), nn.LazyLinear(3)

        def forward(self, x):
            return self.last(use(self, self.first(x)))

    model, x = Ends(), torch.randn(2, 6)
    model(x)
    net = morphogen.trace(model, x)
    before = model(x)
    target = net.subnetwork(width=0.5)
    if target != net.dense:
        assert_equals_masked_dense(net, target, x)
        morphogen.morph(net, target)
        assert model(x).shape == (2, 3)
        morphogen.morph(net, net.dense)
    assert model(x).shape == before.shape

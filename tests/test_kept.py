"""Sizes that a model's code reads from a configuration object, which its modules share."""

import argparse
import copy
import dataclasses
import functools
import logging
import random
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import morphogen
from morphogen.dense.kept import is_configuration

from checks import assert_equals_masked_dense, assert_function_preserved


@dataclasses.dataclass
class Sizes:
    heads: int = 4
    features: int = 16
    words: int = 30

    @property
    def head_size(self):
        return self.features // self.heads


@dataclasses.dataclass(frozen=True)
class Frozen:
    heads: int = 4
    features: int = 16
    words: int = 30


class Attention(nn.Module):
    """As in lit-gpt: the forward pass asks the configuration, not attributes of its own."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes
        self.norm = nn.LayerNorm(sizes.features)
        self.qkv, self.out = nn.Linear(sizes.features, 3 * sizes.features), nn.Linear(sizes.features, sizes.features)

    def forward(self, x):
        batch, length, _ = x.shape
        heads = self.sizes.heads
        size = getattr(self.sizes, "head_size", self.sizes.features // heads)
        parts = self.qkv(self.norm(x)).split(self.sizes.features, 2)
        q, k, v = (p.view(batch, length, heads, size).transpose(1, 2) for p in parts)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.out(mixed.reshape(batch, length, self.sizes.features))


class Model(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes
        self.words, self.last = nn.Embedding(sizes.words, sizes.features), nn.Linear(sizes.features, 3)
        self.blocks = nn.ModuleList(Attention(sizes) for _ in range(2))

    def forward(self, x):
        x = self.words(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def namespace(kind):
    return kind(heads=4, features=16, words=30)


CONFIGURATIONS = {
    "dataclass": Sizes(),
    "frozen": Frozen(),
    "argparse": namespace(argparse.Namespace),
    "namespace": namespace(types.SimpleNamespace),
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_sizes_of_a_configuration_follow_and_the_users_object_stays(kind):
    sizes = CONFIGURATIONS[kind]
    given = copy.deepcopy(sizes)
    model, x = Model(sizes).double(), torch.randint(0, 30, (2, 5))
    net = morphogen.trace(model, x)
    assert all(module.sizes is sizes for module in [model, *model.blocks]) and sizes == given
    heads = [group for group in net.groups if group.size == 4 and not group.inner]
    assert len(heads) == 2  # one a block, though both ask the same object
    half = net.subnetwork(width=0.5)
    morphogen.morph(net, half)
    model(x).sum().backward()
    assert model.blocks[0].sizes.heads == 2 and model.blocks[0].qkv.weight.shape == (24, 8)
    assert sizes == given and type(model.blocks[0].sizes) is type(sizes)
    assert_function_preserved(net, half, x, "quiet")
    morphogen.morph(net, net.dense)
    assert model.blocks[0].sizes == given
    one = net.subnetwork(alive={heads[0].name: [0, 1]})
    morphogen.morph(net, one)
    assert (model.blocks[0].sizes.heads, model.blocks[1].sizes.heads) == (2, 4)
    model(x)


def test_sizes_in_a_dictionary_follow():
    class Mixing(Attention):
        def __init__(self, sizes):
            super().__init__(Sizes())
            self.sizes = types.SimpleNamespace(**sizes)
            self.numbers, self.embed, self.last = sizes, nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x):
            x = self.embed(x)
            heads, features = self.numbers["heads"], self.numbers["features"]
            parts = self.qkv(x).view(*x.shape[:2], 3, heads, features // heads).permute(2, 0, 3, 1, 4)
            return self.last(self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(x.shape)))

    given = {"heads": 4, "features": 16, "name": "small"}
    model, x = Mixing(given).double(), torch.randn(2, 5, 6).double()
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    model(x)
    assert (model.numbers["heads"], given["heads"]) == (2, 4) and model.qkv.out_features == 24


def test_a_configuration_comes_back_where_a_morph_fails(monkeypatch):
    model, x = Model(Sizes()), torch.randint(0, 30, (2, 5))
    net = morphogen.trace(model, x)
    held = [module.sizes for module in model.blocks]
    monkeypatch.setattr("morphogen.morph.commit.drop_caches", lambda tree: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        morphogen.morph(net, net.subnetwork(width=0.5))
    assert all(module.sizes is before for module, before in zip(model.blocks, held, strict=True))
    model(x)


class Shared:
    """What a module writes and another one reads."""

    def __init__(self, gate):
        self.heads, self.gate = 4, gate


class Gated(nn.Module):
    """Heads that are an attribute, and an object that carries a tensor from one module to the next."""

    def __init__(self, shared):
        super().__init__()
        self.heads, self.first, self.qkv, self.last = 4, nn.Linear(6, 16), nn.Linear(16, 48), nn.Linear(16, 3)
        self.writer, self.reader = Gate(shared), Gate(shared)

    def forward(self, x):
        x = self.writer(self.first(x), write=True)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, x.shape[-1] // self.heads).permute(2, 0, 3, 1, 4)
        return self.last(self.reader(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)))


class Gate(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.shared = shared

    def forward(self, x, write=False):
        if write:
            self.shared.gate = x.sigmoid()
        return x if self.shared.gate is None else x * self.shared.gate


@pytest.mark.parametrize("gate", [None, 1.0])
def test_an_object_through_which_modules_speak_stays_one(gate):
    model, x = Gated(Shared(gate)).double(), torch.randn(2, 5, 6).double()
    net = morphogen.trace(model, x)
    assert 4 in [group.size for group in net.groups]
    morphogen.morph(net, net.subnetwork(width=0.5))
    model(x)
    assert model.writer.shared is model.reader.shared


class Single:
    """Of which there is one."""

    here = None

    def __new__(cls):
        cls.here = cls.here or super().__new__(cls)
        cls.here.heads = 4
        return cls.here


class Cached:
    """Keeps what it has computed of its numbers."""

    def __init__(self):
        self.features = 16

    @functools.cached_property
    def double(self):
        return 2 * self.features


def test_an_object_of_which_there_is_one_is_left_alone():
    class Model(Gated):
        def __init__(self):
            super().__init__(Shared(1.0))
            self.single = Single()

        def forward(self, x):
            return super().forward(x) * (self.single.heads / 4)

    model, x = Model().double(), torch.randn(2, 5, 6).double()
    net = morphogen.trace(model, x)
    net.sketch(net.subnetwork(width=0.5))
    assert Single.here.heads == 4 and type(Single.here.heads) is int and model.single is Single.here


def test_a_number_that_an_object_has_computed_follows():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = Cached()
            self.first, self.last = nn.Linear(6, 32), nn.Linear(16, 3)

        def forward(self, x):
            left, right = self.first(x).split([self.sizes.features, self.sizes.double - self.sizes.features], -1)
            return self.last(left * right)

    model, x = Model().double(), torch.randn(2, 6).double()
    model(x)  # which computes it
    net = morphogen.trace(model, x)
    assert [group.size for group in net.groups] == [16]
    morphogen.morph(net, net.subnetwork(width=0.5))
    model(x)
    assert (model.sizes.features, model.sizes.double, model.first.out_features) == (8, 16, 16)


def test_a_number_that_is_a_key_leaves_the_others_followed():
    class Model(Gated):
        def __init__(self):
            super().__init__(Shared(1.0))
            self.choice = types.SimpleNamespace(kind=1)

        def forward(self, x):
            return super().forward({1: torch.relu, 2: torch.tanh}[self.choice.kind](x))

    net = morphogen.trace(Model(), torch.randn(2, 5, 6))
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert net.model.heads == 2 and net.model.choice.kind == 1


OTHERS = logging.getLogger("x"), random.Random(0), {}, {"a": "b"}, {1: 1}, [1], (1,), {1}, print, 3, "a", None, object()


@pytest.mark.parametrize("value", [*OTHERS, nn.ReLU(), torch.ones(1), types])
def test_what_is_no_configuration(value):
    assert not is_configuration(value)


def padded(x, width):
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, width, width))


class Shortcut(nn.Module):
    """Option A of CIFAR's ResNets, as the code of others has it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def shortcuts():
    planes, others = 32, []

    def counted(x):
        others.append(x.shape[1])
        return padded(x, planes // 4)

    yield "lambda", Shortcut(lambda x: padded(x, planes // 4))
    yield "partial", Shortcut(functools.partial(padded, width=8))
    yield "a cell that is written to", Shortcut(counted)


@pytest.mark.parametrize(("kind", "shortcut"), shortcuts(), ids=lambda each: each if isinstance(each, str) else "")
def test_numbers_that_functions_were_made_with_follow(kind, shortcut):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
            self.shortcut, self.head = shortcut, nn.Conv2d(32, 3, 1)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head(self.conv(x) + self.shortcut(x))

    model, x, function = Net().double(), torch.randn(2, 3, 8, 8).double(), shortcut.function
    net = morphogen.trace(model, x)
    assert shortcut.function is function and sorted(group.size for group in net.groups) == [8, 16]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model(x).shape == (2, 3, 4, 4) and model.conv.out_channels == 16
    assert function(torch.ones(1, 16, 4, 4)).shape[1] == 32  # the user's own is as it was
    morphogen.morph(net, net.dense)
    assert model(x).shape == (2, 3, 4, 4)

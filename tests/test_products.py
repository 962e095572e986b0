"""Weights multiplied by hand: matrices from the left, one for each expert, with heads as an axis of their own."""

from math import prod

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import morphogen
from morphogen.dense.subnet import Role
from morphogen.morph.growth import Gap, named
from morphogen.morph.tensors import AxisMap, TensorMap
from morphogen.operators.random import he

from checks import assert_equals_masked_dense, assert_function_preserved


def weight(*shape):
    return nn.Parameter(torch.randn(*shape) / 4)


class ByHand(nn.Module):
    """Matrices from the left and from the right, and a vector that all features are summed with."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.score = weight(6, 16), weight(8, 16), weight(3, 8), weight(8)

    def forward(self, x):
        h = (self.second @ (x @ self.first).relu().mT).relu()
        return (self.third @ h).mT * (h.mT @ self.score).sigmoid()[..., None]


class Experts(nn.Module):
    """A mixture of three experts, of which all are run."""

    def __init__(self):
        super().__init__()
        self.inner, self.gate, self.head = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.up, self.down = weight(3, 8, 16), weight(3, 16, 8)

    def forward(self, x):
        x = self.inner(x).flatten(0, 1)
        y = self.run(x, self.gate(x).softmax(-1))
        return self.head(x + y)

    def run(self, x, share):
        y = torch.bmm(torch.bmm(x[None].expand(3, -1, -1), self.up).relu(), self.down)
        return (y * share.mT[..., None]).sum(0)


class Sorted(Experts):
    """The same, each row by its best expert, with weights stored the other way round."""

    def __init__(self):
        super().__init__()
        self.up, self.down = weight(3, 16, 8), weight(3, 8, 16)

    def run(self, x, share):
        best, expert = share.max(-1)
        order = expert.argsort()
        ends = F.one_hot(expert, 3).sum(0).cumsum(0).int()
        h = F.grouped_mm(x[order], self.up.mT, offs=ends).relu()
        y = F.grouped_mm(h, self.down.mT, offs=ends)
        return torch.zeros_like(x).index_add(0, order, y * best[order, None])


class Einsums(Experts):
    """The same as einsums, all experts at once."""

    def run(self, x, share):
        return torch.einsum("eno,ne->no", torch.einsum("enh,eho->eno", self.hidden(x), self.down), share)

    def hidden(self, x):
        return torch.einsum("ni,eih->enh", x, self.up).relu()


class Heads(nn.Module):
    """Values and outputs of attention, heads and their channels as axes of their own."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.value, self.out = weight(8, 4, 6), weight(4, 6, 8)

    def forward(self, x):
        h = self.inner(x)
        return self.head(
            h + torch.einsum("bthk,hkd->btd", torch.einsum("btd,dhk->bthk", h, self.value).relu(), self.out)
        )


ROLES = {
    ByHand: {
        "first": Role("weight", outs=(1,), ins=(0,)),
        "second": Role("weight"),
        "third": Role("weight"),
        "score": Role("weight", outs=(), ins=(0,)),
    },
    Experts: dict.fromkeys(("up", "down"), Role("weight", outs=(2,), ins=(1,), batch=(0,))),
    Sorted: dict.fromkeys(("up", "down"), Role("weight", outs=(1,), ins=(2,), batch=(0,))),
    Einsums: {
        "up": Role("weight", outs=(0, 2), ins=(1,)),
        "down": Role("weight", outs=(2,), ins=(1,), batch=(0,)),
    },
    Heads: {"value": Role("weight", outs=(1, 2), ins=(0,)), "out": Role("weight", outs=(2,), ins=(0, 1))},
}


class Jax(nn.Module):
    """Depthwise and grouped kernels that are stored with their outputs last."""

    def __init__(self, groups):
        super().__init__()
        self.groups, self.first, self.last = groups, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.kernel = weight(3, 3, 8 // groups, 8)

    def forward(self, x):
        kernel = self.kernel.permute(3, 2, 0, 1)
        groups = self.kernel.shape[-1] if self.groups == 8 else self.groups
        return self.last(F.conv2d(self.first(x), kernel, padding=1, groups=groups).relu())


@pytest.mark.parametrize("groups", [2, 8])
def test_kernels_of_grouped_convolutions_in_another_order(groups):
    model, x = Jax(groups).double(), torch.randn(2, 3, 8, 8).double()
    net = morphogen.trace(model, x)
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    for operator in ("quiet", "net2net", "orthogonal", "random"):
        morphogen.morph(net, net.subnetwork(width=0.5))
        morphogen.morph(net, net.dense, operator=operator)
        assert model(x).isfinite().all() and model.kernel.shape[-1] == 8


class LowRank(nn.Module):
    """A weight that is a product of two, beside one of its own (LoRA, merged)."""

    def __init__(self):
        super().__init__()
        self.inner, self.down, self.up = nn.Linear(6, 16), weight(8, 16), weight(16, 8)
        self.own, self.head = weight(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.inner(x).relu()
        return self.head(F.linear(x, self.own + 0.5 * self.up @ self.down).relu())


ROLES[LowRank] = {
    "down": Role("weight", outs=(0,), ins=(1,)),
    "up": Role("weight", outs=(0,), ins=(1,)),
    "own": Role("weight"),
}


@pytest.mark.parametrize("kind", ROLES, ids=lambda kind: kind.__name__)
def test_they_narrow_and_grow_as_layers_do(kind):
    model, x = kind(), torch.randn(2, 4, 6)
    net = morphogen.trace(model, x)
    half = net.subnetwork(width=0.5)
    assert {name: net.structure.tensors[name].role for name in ROLES[kind]} == ROLES[kind]
    assert_equals_masked_dense(net, half, x)
    for operator in ("quiet", "net2net", "fpi"):
        morphogen.morph(net, half)
        for name in ROLES[kind]:
            assert model.get_parameter(name).numel() < prod(net.structure.tensors[name].shape)
        assert_function_preserved(net, net.dense, x, operator, tolerance=1e-5)
        loss = model(x).square().sum()
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, model.parameters()))


class Modulated(nn.Module):
    """Kernels that differ from example to example: scaled by features of it (StyleGAN2), or mixed of several
    (CondConv), in a convolution with a group for each example."""

    def __init__(self, mixed):
        super().__init__()
        self.first, self.last, self.mixed = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1), mixed
        self.kernel = weight(4 if mixed else 1, 16, 16, 3, 3)
        self.style = nn.Linear(3, 4) if mixed else nn.Linear(3, 16)

    def forward(self, x):
        style, x = self.style(x.mean((2, 3))), self.first(x).relu()
        b, c, h, w = x.shape
        if self.mixed:
            kernels = (style.softmax(-1) @ self.kernel.view(4, -1)).view(-1, c, 3, 3)
        else:
            kernels = (self.kernel * style.view(b, 1, c, 1, 1)).view(-1, c, 3, 3)
        y = F.conv2d(x.reshape(1, -1, h, w), kernels, padding=1, groups=b).view(b, -1, h, w)
        return self.last(y.relu())


@pytest.mark.parametrize("mixed", [False, True])
def test_kernels_in_disguise_grow_without_a_change_of_the_function(mixed):
    model, x = Modulated(mixed).double(), torch.randn(4, 3, 8, 8).double()
    net = morphogen.trace(model, x)
    assert [group.size for group in net.groups] == [16, 16]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert_function_preserved(net, net.dense, x, "quiet")
    (grad,) = torch.autograd.grad(model(x).square().sum(), model.kernel)
    assert grad[:, :8, 8:].abs().amax() > 0  # old outputs learn to read what is new


def gap_of(role, shape, grown, groups=1):
    """A tensor that grows behind what it had, by hand."""
    axes = [
        None if new == old else AxisMap(torch.arange(new) % old, torch.arange(new) < old)
        for old, new in zip(shape, grown, strict=True)
    ]
    old = torch.randn(*shape)
    return Gap(
        TensorMap("w", role, shape, grown, tuple(axes), groups, grown, None), old, torch.Generator().manual_seed(0)
    )


def test_each_expert_grows_by_itself():
    """(2, 8, 6) to (2, 16, 10), in by out."""
    gap = gap_of(Role("weight", outs=(2,), ins=(1,), batch=(0,)), (2, 8, 6), (2, 16, 10))
    assert gap.fan_in == 16 and not gap.fresh.any()
    orthogonal, quiet = (named(name).fill(gap) for name in ("orthogonal", "quiet"))
    for expert in range(2):
        old, new = gap.old[expert], orthogonal[expert]
        assert torch.equal(new[:8, :6], old) and torch.equal(quiet[expert, :8, :6], old)
        # Eight inputs leave room for two filters orthogonal to the six that there are.
        assert (old.T @ new[:8, 6:8]).abs().max() < 1e-5 and (old.T @ new[:8, 8:]).abs().max() > 1e-2
        assert torch.equal(quiet[expert, 8:, :6], torch.zeros(8, 6)) and quiet[expert, 8:, 6:].all()


def test_an_expert_that_is_new_begins_as_a_new_layer():
    gap = gap_of(Role("weight", outs=(2,), ins=(1,), batch=(0,)), (1, 300, 200), (2, 300, 200))
    assert gap.fresh.tolist() == [False, True]
    grown = named("quiet").fill(gap)
    assert torch.equal(grown[0], gap.old[0])
    assert grown[1].std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.02)


def test_copies_of_inputs_on_two_axes_are_divided_by_both():
    """Two heads of two channels to four of four: each input has four copies, each a quarter of the old weight."""
    gap = gap_of(Role("weight", outs=(2,), ins=(0, 1)), (2, 2, 3), (4, 4, 3))
    grown = named("net2net").fill(gap)
    torch.testing.assert_close(grown[:2, :2], gap.old / 4)
    torch.testing.assert_close(grown.sum((0, 1)), gap.old.sum((0, 1)))
    assert torch.equal(named("quiet").fill(gap)[2:], torch.zeros(2, 4, 3))  # nothing of it goes to a new output


@given(st.permutations(range(4)), st.tuples(*[st.integers(0, 4)] * 3), st.sampled_from([1, 2]))
def test_matrices_and_back(order, ends, groups):
    first, second, third = sorted(ends)
    role = Role("weight", order[:first], order[first:second], order[second:third], groups=groups)
    gap = gap_of(role, (2, 3, 4, 5), (4, 3, 6, 5), groups)
    tensor = torch.randn(4, 3, 6, 5)
    matrices = gap.matrices(tensor)
    assert torch.equal(gap.tensor(matrices), tensor)
    assert matrices.shape[1] == len(gap.carried(role.outs)) and matrices.shape[2] == len(gap.carried(role.ins))
    assert matrices.shape[0] == len(gap.fresh) and gap.fan_in == matrices.shape[2] * matrices.shape[3]
    assert he(gap, 2).shape == (2,)

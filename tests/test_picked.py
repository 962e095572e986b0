"""Positions that a mask picks: mixtures of experts as people write them, and what else has sizes that values tell."""

import pytest
import torch
from torch import nn

import morphogen
from morphogen.cost.flops import cost
from morphogen.dense.picked import AllPicked

from checks import assert_equals_masked_dense, assert_function_preserved, assert_same, snapshot


def where(x, chosen, experts):
    y = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        tokens, places = torch.where(condition=chosen == number)
        y.index_add_(0, tokens, expert(x[tokens]) * (1 + places[:, None]))
    return y


def nonzero(x, chosen, experts):
    y = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        tokens = torch.nonzero(input=(chosen == number).any(-1)).squeeze(-1)
        if tokens.numel() == 0:
            continue
        y[tokens] = y[tokens] + expert(x[tokens])
    return y


def as_tuple(x, chosen, experts):
    y = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        (tokens,) = torch.nonzero((chosen == number).any(-1), as_tuple=True)
        y = y.index_put((tokens,), expert(x[tokens]), accumulate=True)
    return y


def mask(x, chosen, experts):
    y = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        mine = (chosen == number).any(-1)
        if mine.any():
            y[mine] += expert(x[mine])
    return y


def one_by_one(x, chosen, experts):
    """Every feature by itself, which stay whole."""
    y = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        mine = (chosen == number).any(-1, keepdim=True)
        y = y.masked_scatter(mine, torch.masked_select(expert(x), mine))
    return y


class Mixture(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.inner, self.gate, self.head = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(3))
        self.run = run

    def forward(self, x):
        x = self.inner(x)
        flat = x.flatten(0, 1)
        y = self.run(flat, self.gate(flat).topk(2, dim=-1).indices, self.experts)
        return self.head(x + y.view_as(x))


@pytest.mark.parametrize("run", [where, nonzero, as_tuple, mask, one_by_one])
def test_experts_that_take_their_tokens(run):
    model, x = Mixture(run).double(), torch.randn(2, 7, 6).double()
    net = morphogen.trace(model, x)
    half = net.subnetwork(width=0.5)
    sizes = [group.size for group in net.groups]
    assert sizes == [32, 32, 32] if run is one_by_one else sorted(sizes) == [16, 32, 32, 32]
    assert_equals_masked_dense(net, half, x)
    morphogen.morph(net, half)
    assert_function_preserved(net, net.dense, x, "quiet")
    other = torch.randn(3, 5, 6).double()
    model(other).square().mean().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_flops_are_those_of_experts_that_take_every_token():
    net = morphogen.trace(Mixture(where), torch.randn(1, 10, 6))
    layers = 6 * 16 + 16 * 3 + 16 * 4 + 3 * 2 * (16 * 32 + 32 * 16)  # of two choices each token may be in any
    assert cost(net, net.dense).forward == 2 * 10 * layers


class Points(nn.Module):
    """PointNet++: centres chosen one by one, the points near each, and the first in place of missing ones."""

    def __init__(self):
        super().__init__()
        self.lift, self.mix, self.head = nn.Linear(3, 16), nn.Conv2d(19, 32, 1), nn.Linear(32, 4)
        self.norm = nn.BatchNorm2d(32)

    def forward(self, points):
        features = self.lift(points)
        rows = torch.arange(len(points), device=points.device)
        distance, farthest, centres = points.new_full(points.shape[:2], 1e10), rows * 0, []
        for _ in range(4):
            centres.append(farthest)
            nearer = ((points - points[rows, farthest][:, None]) ** 2).sum(-1)
            mask = nearer < distance
            distance[mask] = nearer[mask]
            farthest = distance.max(-1)[1]
        centres = points[rows[:, None], torch.stack(centres, 1)]
        square = torch.cdist(centres, points) ** 2
        index = torch.arange(points.shape[1], device=points.device).repeat(*square.shape[:2], 1)
        index[square > 0.5] = points.shape[1]
        index = index.sort(dim=-1)[0][:, :, :5]
        missing = index == points.shape[1]
        index[missing] = index[:, :, :1].repeat(1, 1, 5)[missing]
        near = torch.cat([points, features], -1)[rows[:, None, None], index]
        return self.head(self.norm(self.mix(near.permute(0, 3, 1, 2))).relu().amax(-1).mean(-1))


def test_points_within_a_radius():
    model, x = Points().double(), torch.rand(2, 12, 3).double()
    net = morphogen.trace(model, x)
    assert sorted(group.size for group in net.groups) == [16, 32]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)


class Ways(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.large, self.small, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = self.first(x)
        return self.head(self.large(x) if (x > 9).any() else self.small(x))


def test_a_branch_that_is_not_taken_is_not_followed():
    model = Ways()
    before = snapshot(model)
    with pytest.raises(morphogen.TraceError, match=r"small.bias: .*does not run this.*torch.where"):
        morphogen.trace(model, torch.randn(2, 6))
    assert_same(before, model)


def test_masks_with_values_pick_what_they_pick():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 16), nn.Linear(16 * 4, 3)
            self.keep = torch.tensor([True, False, True, True, False, False, True])

        def forward(self, x):
            return self.last(self.first(x)[:, self.keep].flatten(1))

    model, x = Kept(), torch.randn(2, 7, 6)
    net = morphogen.trace(model, x)
    assert [group.size for group in net.groups] == [16]
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)


def test_real_tensors_are_left_alone():
    x = torch.arange(6).view(2, 3)
    with AllPicked() as picked:
        assert x[x > 2].tolist() == [3, 4, 5] and torch.where(x > 4)[1].tolist() == [2]
        assert (x > 9).any().item() is False and not bool((x > 9).any())
    assert not picked.branched

"""Index tables of depth growth: by hand, and as the blocks show them."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import morphogen
from morphogen.dense.depth import interpolated, nested, originals, stacked

from checks import (
    perturb,
    snapshot,
    tensors,
)
from nets import Stacked, alive, numbered, numbers
from nightly import often

BETWEEN = {
    (6, 9): [0, 1, 2, 3, 3, 4, 4, 5, 5],
    (6, 12): [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5],
    (8, 12): [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7],
    (9, 12): [0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8],
    (7, 11): [0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6],
    (4, 8): [0, 0, 1, 1, 2, 2, 3, 3],
    (1, 12): [0] * 12,
}
ON_TOP = {
    (6, 9): [0, 1, 2, 3, 4, 5, 0, 1, 2],
    (6, 12): [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5],
    (8, 12): [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3],
    (9, 12): [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2],
    (7, 11): [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3],
    (4, 8): [0, 1, 2, 3, 0, 1, 2, 3],
    (1, 12): [0] * 12,
}
KEPT = {  # by `interpolated`, on the way back
    (6, 9): [0, 1, 2, 3, 5, 7],
    (6, 12): [0, 2, 4, 6, 8, 10],
    (8, 12): [0, 1, 2, 3, 4, 6, 8, 10],
    (9, 12): [0, 1, 2, 3, 4, 5, 6, 8, 10],
    (7, 11): [0, 1, 2, 3, 5, 7, 9],
    (4, 8): [0, 2, 4, 6],
    (1, 12): [0],
}
TABLES = {"interpolate": BETWEEN, "identity": BETWEEN, "momentum": BETWEEN, "mogrow": BETWEEN, "random": BETWEEN} | {
    "stack": ON_TOP,
    "mostack": ON_TOP,
}
PAIRS = pytest.mark.parametrize("pair", BETWEEN, ids=lambda pair: "{} to {}".format(*pair))


@PAIRS
def test_tables_by_hand(pair):
    before, after = pair
    assert interpolated(before, after) == BETWEEN[pair]
    assert stacked(before, after) == ON_TOP[pair]
    assert interpolated(after, before) == originals(BETWEEN[pair]) == KEPT[pair]
    assert stacked(after, before) == originals(ON_TOP[pair]) == list(range(before))


def test_nested_stages_by_hand():
    assert nested([6, 9, 12], interpolated) == [
        (0, 1, 2, 3, 5, 8),
        (0, 1, 2, 3, 4, 5, 6, 8, 10),
        tuple(range(12)),
    ]
    assert nested([6, 9, 12], stacked) == [tuple(range(6)), tuple(range(9)), tuple(range(12))]
    assert nested([4, 4], interpolated) == [(0, 1, 2, 3)] * 2


@pytest.mark.parametrize("table", [interpolated, stacked])
@settings(deadline=None)
@given(data=st.data())
def test_growing_then_shrinking_is_the_identity_and_stages_are_nested(table, data):
    lengths = sorted(data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=5)))
    before, after = lengths[0], lengths[-1]
    grown = table(before, after)
    assert [grown[i] for i in table(after, before)] == list(range(before))
    assert len(grown) == after and set(grown) == set(range(before))
    if table is interpolated:
        assert grown == sorted(grown)
        assert max(grown.count(i) for i in grown) - min(grown.count(i) for i in grown) <= 1
    stages = nested(lengths, table)
    assert [len(stage) for stage in stages] == lengths and stages[-1] == tuple(range(after))
    assert all(set(small) <= set(large) for small, large in itertools.pairwise(stages))


@pytest.mark.parametrize(
    ("name", "pair"),
    often(
        itertools.product(TABLES, BETWEEN),
        lambda case: case[0] in ("interpolate", "stack") or case[1] in ((6, 9), (7, 11)),
    ),
    ids=str,
)
def test_every_depth_operator_follows_its_table(name, pair):
    before, after = pair
    net = numbered(after)
    kept = list(range(before)) if TABLES[name] is ON_TOP else KEPT[pair]
    morphogen.morph(net, net.subnetwork(blocks={"blocks": kept}))
    assert numbers(net) == kept
    assert TABLES[name] is ON_TOP or net.current == net.subnetwork(depth=before / after)
    old = [net.model.blocks[i] for i in kept]
    momentum = copy.deepcopy(net.model)
    for rank, i in enumerate(kept):
        nn.init.constant_(net.model.blocks[i].read.weight, rank)
        nn.init.constant_(momentum.blocks[i].read.weight, 100 + rank)
    receipt = morphogen.morph(net, net.dense, depth_operator=name, momentum=momentum)
    assert [net.model.blocks[i] for i in kept] == old  # the very same modules
    entered = {int(key.split(".")[1]) for key in receipt.entered}
    assert entered == set(range(after)) - set(kept)
    averaged = {"mogrow": range(after), "mostack": range(after), "momentum": entered}.get(name, ())
    expected = [source + 100 * (i in averaged) for i, source in enumerate(TABLES[name][pair])]
    if name == "random":  # drawn from the traced tensor: block i had the constant i
        expected = [i if i in entered else source for i, source in enumerate(expected)]
    assert numbers(net) == expected
    for i in entered:
        assert (net.model.blocks[i].write.weight == 0).all() == (name == "identity")
    # The momentum network begins anew from what was grown.
    assert all(torch.equal(value, tensors(net.model)[key]) for key, value in tensors(momentum).items())


def test_a_method_stacks_when_it_is_asked_to():
    net = numbered(12)
    first, last = morphogen.NetworkExpansion(depth=0.5, stages=2, depth_operator="stack").schedule(net, 2)
    morphogen.morph(net, first.subnetwork)
    for rank, block in enumerate(alive(net.model, net.stacks[0])):
        nn.init.constant_(block.read.weight, rank)
    morphogen.morph(net, last.subnetwork, depth_operator="stack")
    assert numbers(net) == ON_TOP[6, 12]


def test_random_blocks_have_the_traced_mean_and_deviation():
    class Wide(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.scale = nn.Parameter(torch.full((2,), 1e-4))
            self.wide = nn.Linear(2, 2000)
            self.narrow = nn.Linear(2000, 2)
            nn.init.normal_(self.wide.weight, 0.5 * number, 0.1 * (number + 1))

        def forward(self, x):
            return x + self.scale * self.narrow(torch.tanh(self.wide(self.norm(x))))

    model = Stacked(4, Wide)
    net = morphogen.trace(model, torch.randn(2, 3))
    morphogen.morph(net, net.subnetwork(blocks={"blocks": [0, 2]}))
    perturb(model)
    before = snapshot(model)
    morphogen.morph(net, net.dense, depth_operator="random", generator=torch.Generator().manual_seed(0))
    after = snapshot(model)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    for number in (1, 3):
        block = model.blocks[number]
        assert block.wide.weight.mean().item() == pytest.approx(0.5 * number, abs=0.03)
        assert block.wide.weight.std().item() == pytest.approx(0.1 * (number + 1), rel=0.05)
        assert (block.scale == 1e-4).all() and (block.norm.weight == 1).all() and (block.norm.bias == 0).all()
        assert (block.norm.running_mean == 0).all() and (block.norm.running_var == 1).all()
        assert block.norm.num_batches_tracked == 0
    assert not torch.equal(model.blocks[1].wide.bias, model.blocks[3].wide.bias)


def test_blocks_may_enter_while_others_leave():
    """The blocks kept by two shares of the depth are not nested: 2 of 6 are 0 and 3, 4 of 6 are 0, 1, 2 and 4."""
    net = numbered(6)
    morphogen.morph(net, net.subnetwork(depth=2 / 6))
    assert numbers(net) == [0, 3]
    morphogen.morph(net, net.subnetwork(depth=4 / 6))
    assert numbers(net)[0] == 0 and len(numbers(net)) == 4


def test_an_operator_of_ones_own_reads_online_and_averaged_values():
    seen = []

    def mean(entry):
        seen.append((entry.unit, entry.rank, entry.below, entry.before, entry.after))
        return (entry.copy(entry.below) + entry.copy(entry.below, averaged=True)) / 2

    net = numbered(4)
    morphogen.morph(net, net.subnetwork(blocks={"blocks": [0, 3]}))
    momentum = morphogen.MomentumNetwork(net.model, 0.5)
    nn.init.constant_(momentum.module.blocks[0].read.weight, 8)
    target = net.subnetwork(blocks={"blocks": [0, 2, 3]})
    morphogen.morph(net, target, depth_operator=mean, momentum=momentum)
    assert numbers(net) == [0, 4, 3] and set(seen) == {(2, 1, 0, (0, 3), (0, 2, 3))}

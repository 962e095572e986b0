"""Depth: index tables, the blocks that enter and leave, and everything that has to follow them."""

import copy
import functools
import itertools

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models.convnext import CNBlockConfig

import morphogen
from morphogen.bypass import Bypass
from morphogen.depth import interpolated, nested, originals, stacked
from morphogen.fake import FakeModel
from morphogen.morph.drop_path import lay_out_drop_path

from checks import (
    assert_optimizer_holds_model,
    assert_survivors_equal,
    assert_unchanged,
    names_in_groups,
    perturb,
    snapshot,
    take_steps,
)
from nets import Numbered, Stacked, Tower, image, small

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


def tensors(model):
    return dict([*model.named_parameters(), *model.named_buffers()])


def alive(model, stack):
    """The modules of a stack that are no stand-ins."""
    return [m for m in map(model.get_submodule, stack.blocks) if not isinstance(m, Bypass)]


# Index tables


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


# The same tables, seen in the blocks


@functools.cache
def structure(depth):
    return morphogen.trace(Stacked(depth), torch.randn(2, 3)).structure


def numbered(depth):
    """A stack whose blocks carry their numbers, without tracing it anew."""
    model = Stacked(depth)
    return morphogen.Network(model, structure(depth), FakeModel(model, torch.randn(2, 3)))


def numbers(network):
    return [round(block.read.weight.mean().item()) for block in alive(network.model, network.stacks[0])]


@PAIRS
@pytest.mark.parametrize("name", TABLES)
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


# Identity


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "volo_d1", "convnext_tiny", "resnet50"])
def test_identity_keeps_the_function(name):
    model, side = small(name)
    perturb(model.double())
    x = torch.randn(2, 3, side, side).double()
    net = morphogen.trace(model.eval(), x)
    half = net.subnetwork(depth=0.5)
    morphogen.morph(net, half)
    with torch.no_grad():
        expected = model(x)
        morphogen.morph(net, net.dense, depth_operator="identity")
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        morphogen.morph(net, half)
        morphogen.morph(net, net.dense, depth_operator="interpolate")
        assert (model(x) - expected).abs().max() > 1e-3  # blocks that speak would show


def test_identity_keeps_the_function_of_swin():
    model, side = small("swin_tiny_patch4_window7_224")
    perturb(model.double())
    x = torch.randn(1, 3, side, side).double()
    net = morphogen.trace(model.eval(), x)
    assert [(stack.name, stack.size) for stack in net.stacks] == [("layers.1.blocks", 3)]
    assert net.stacks[0].units[1] == ("layers.1.blocks.2", "layers.1.blocks.3")  # plain and shifted windows
    morphogen.morph(net, net.subnetwork(depth=0.5))
    assert [type(block) is Bypass for block in model.layers[1].blocks] == [False] * 4 + [True] * 2
    with torch.no_grad():
        expected = model(x)
        morphogen.morph(net, net.dense, depth_operator="identity")
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


class Pair(nn.Module):
    """A linear layer and a norm, to be combined in ways of its own."""

    def __init__(self, _):
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)


class PostNorm(Pair):
    def forward(self, x):
        return self.norm(x + self.layer(x))


class GeluAfter(Pair):
    def forward(self, x):
        return nn.functional.gelu(x + self.layer(self.norm(x)))


class NoResidual(Pair):
    def forward(self, x):
        return torch.relu(self.layer(self.norm(x)))


class HalfStream(Pair):
    def forward(self, x):
        return torch.add(self.layer(self.norm(x)), x, alpha=0.5)


class ReluAfter(Pair):
    def forward(self, x):
        return torch.relu(x + self.layer(self.norm(x)))


@pytest.mark.parametrize(
    "block",
    [
        PostNorm,
        GeluAfter,
        NoResidual,
        HalfStream,
    ],
)
def test_identity_is_refused_where_a_block_cannot_be_silenced(block):
    model = Stacked(4, block)
    net = morphogen.trace(model, torch.randn(2, 3))
    half = net.subnetwork(depth=0.5)
    morphogen.morph(net, half)
    before = snapshot(model)
    with pytest.raises(morphogen.MorphError, match=r"blocks: the depth operator 'identity' cannot silence"):
        morphogen.morph(net, net.dense, depth_operator="identity")
    assert_unchanged(net, before, half)
    morphogen.morph(net, net.dense, depth_operator="interpolate")


@pytest.mark.parametrize("kept", [[0, 2], [1, 3]], ids=str)
def test_identity_with_a_relu_after_the_addition(kept):
    """relu(x) is x only where x comes out of a block of the same kind."""
    model = Stacked(4, ReluAfter).double().eval()
    perturb(model)
    x = torch.randn(64, 3).double()
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(blocks={"blocks": kept}))
    with torch.no_grad():
        expected = model(x)
        if kept[0]:
            with pytest.raises(morphogen.MorphError, match=r"blocks.0: .* cannot put a block before all others"):
                morphogen.morph(net, net.dense, depth_operator="identity")
        else:
            morphogen.morph(net, net.dense, depth_operator="identity")
        torch.testing.assert_close(model(x), expected)


# Momentum growth


@pytest.mark.parametrize("name", ["momentum", "mogrow"])
def test_a_momentum_network_without_memory_is_interpolation(name):
    def grown(operator):
        torch.manual_seed(0)
        model = Tower(6)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        net = morphogen.trace(model, image())
        morphogen.morph(net, net.subnetwork(depth=0.5), optimizer=optimizer)
        momentum = morphogen.MomentumNetwork(model, 0.0)
        for _ in range(3):
            take_steps(model, optimizer, image(), steps=1)
            momentum.update_parameters(model)
        morphogen.morph(net, net.dense, optimizer=optimizer, depth_operator=operator, momentum=momentum)
        take_steps(model, optimizer, image(), steps=1)
        momentum.update_parameters(model)  # goes on in the grown network
        return snapshot(model, optimizer), tensors(momentum.module)

    (left, average), (right, _) = grown(name), grown("interpolate")
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key
    assert all(torch.equal(value, left[key]) for key, value in average.items())


def test_the_momentum_network_averages_weights_and_statistics_by_hand():
    model = Tower(2)
    momentum = morphogen.MomentumNetwork(model, 0.75)
    momentum.update_parameters(model)
    start = snapshot(model)
    take_steps(model, torch.optim.SGD(model.parameters(), 0.1), image())
    momentum.update_parameters(model)
    for key in ("blocks.1.conv.weight", "blocks.1.norm.running_mean"):
        expected = 0.75 * start[key] + 0.25 * snapshot(model)[key]
        torch.testing.assert_close(tensors(momentum.module)[key], expected)
    assert tensors(momentum.module)["blocks.1.norm.num_batches_tracked"] == 2


# Optimizers


GROUPINGS = {
    "layer decay": lambda model: param_groups_layer_decay(model, 0.05, layer_decay=0.75),
    "weight decay": lambda model: param_groups_weight_decay(model, 0.05),
}


def deit(depth=6, **settings):
    return small("deit_tiny_patch16_224", depth=depth, img_size=16, **settings)[0]


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_groups_and_their_order_come_back_and_moments_survive(grouping):
    model = deit()
    optimizer = torch.optim.AdamW(GROUPINGS[grouping](model), 1e-3)
    begin, options = names_in_groups(model, optimizer), [{**g, "params": 0} for g in optimizer.param_groups]
    x = image(size=16)
    net = morphogen.trace(model, x)
    everything = list(model.parameters())
    take_steps(model, optimizer, x, steps=1)
    for kept in ([0, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4, 5]):
        old, target = net.current, net.subnetwork(blocks={"blocks": kept})
        before = snapshot(model, optimizer)
        morphogen.morph(net, target, optimizer=optimizer)
        after = snapshot(model, optimizer)
        assert_survivors_equal(net, before, old, target, after)
        assert_optimizer_holds_model(model, optimizer)
        assert set(optimizer.state) <= set(model.parameters())
        entered = {f"blocks.{i}." for i in kept if i not in old.blocks["blocks"]}
        assert not [key for key in after if "/" in key and key.startswith(tuple(entered) or "none")]
        expected = [[n for n in group if n in dict(model.named_parameters())] for group in begin]
        assert names_in_groups(model, optimizer) == expected
        take_steps(model, optimizer, x, steps=1)
    assert names_in_groups(model, optimizer) == begin
    assert [id(p) for p in model.parameters()] == [id(p) for p in everything]
    names = {"params", "param_names"}
    assert [{k: v for k, v in g.items() if k not in names} for g in optimizer.param_groups] == [
        {k: v for k, v in g.items() if k not in names} for g in options
    ]


def test_names_in_the_optimizer_stay_beside_their_parameters():
    model = deit()
    optimizer = torch.optim.AdamW(model.named_parameters(), 1e-3)
    net = morphogen.trace(model, image(size=16))
    morphogen.morph(net, net.subnetwork(depth=0.5), optimizer=optimizer)
    assert [group["param_names"] for group in optimizer.param_groups] == names_in_groups(model, optimizer)


def test_an_optimizer_made_after_the_shrink_takes_new_parameters_beside_their_counterparts():
    model = deit()
    x = image(size=16)
    net = morphogen.trace(model, x)
    for i in range(6):
        model.blocks[i].norm2.weight.requires_grad_(False)
    half = net.subnetwork(blocks={"blocks": [0, 2, 4]})
    morphogen.morph(net, half)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    low = [p for n, p in trained.items() if n.startswith(("blocks.0.", "blocks.2.")) and p.ndim == 2]
    ids = {id(p) for p in low}
    rest = [p for p in trained.values() if id(p) not in ids]
    optimizer = torch.optim.AdamW([{"params": low, "lr": 1e-4}, {"params": rest}], 1e-3)
    take_steps(model, optimizer, x, steps=1)
    before = snapshot(model, optimizer)
    morphogen.morph(net, net.dense, optimizer=optimizer)
    assert_survivors_equal(net, before, half, net.dense, snapshot(model, optimizer))
    matrices = ["attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"]
    low_names, rest_names = names_in_groups(model, optimizer)
    assert low_names == [f"blocks.{i}.{name}" for i in range(4) for name in matrices]
    everything = [n for n, p in model.named_parameters() if p.requires_grad]
    assert rest_names == [name for name in everything if name not in low_names]
    assert not [name for name in low_names + rest_names if "norm2.weight" in name]
    assert not any(block.norm2.weight.requires_grad for block in model.blocks)


def test_a_trainable_block_beside_a_frozen_one_is_trained():
    """Every trainable parameter is in exactly one group, whatever its neighbours are."""
    model = Tower(4)
    net = morphogen.trace(model, image())
    model.blocks[0].requires_grad_(False)
    morphogen.morph(net, net.subnetwork(depth=0.5))  # blocks 0 and 2
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    morphogen.morph(net, net.dense, optimizer=optimizer)
    held = {name for group in names_in_groups(model, optimizer) for name in group}
    assert held == {name for name, p in model.named_parameters() if p.requires_grad}


def test_two_optimizers_each_keep_their_own():
    model = Tower(6)
    convolutions = [p for p in model.parameters() if p.ndim == 4]
    others = [p for p in model.parameters() if p.ndim != 4]
    sgd, adam = torch.optim.SGD(convolutions, 0.01, momentum=0.9), torch.optim.Adam(others)
    begin = names_in_groups(model, sgd), names_in_groups(model, adam)
    net = morphogen.trace(model, image())
    half = net.subnetwork(depth=0.5)
    for target in (half, net.dense):
        model(image()).square().sum().backward()
        sgd.step(), adam.step()
        before, old = snapshot(model, sgd) | snapshot(model, adam), net.current
        morphogen.morph(net, target, optimizer=[sgd, adam])
        assert_survivors_equal(net, before, old, target, snapshot(model, sgd) | snapshot(model, adam))
        there = set(model.parameters())
        assert set(sgd.state) | set(adam.state) <= there
        assert {id(p) for o in (sgd, adam) for g in o.param_groups for p in g["params"]} == {id(p) for p in there}
    assert (names_in_groups(model, sgd), names_in_groups(model, adam)) == begin


def test_blocks_that_are_out_hold_no_memory_and_no_state():
    model = Tower(6)
    optimizer = torch.optim.Adam(model.parameters())
    take_steps(model, optimizer, image())
    net = morphogen.trace(model, image())
    gone = {name: p for name, p in model.named_parameters() if name.startswith(("blocks.1", "blocks.3", "blocks.5"))}
    receipt = morphogen.morph(net, net.subnetwork(depth=0.5), optimizer=optimizer)
    assert receipt.left == ("blocks.1", "blocks.3", "blocks.5") == tuple(net.outside)
    out = [t for module in net.outside.values() for t in [*module.parameters(), *module.buffers()]]
    assert len(out) == 3 * 7  # conv, norm: weight and bias, mean, variance, counter
    assert all(t.numel() == 0 and t.untyped_storage().nbytes() == 0 and t.grad is None for t in out)
    assert len(gone) == 3 * 4 and not any(p in optimizer.state for p in gone.values())
    morphogen.morph(net, net.dense, optimizer=optimizer)
    assert not net.outside
    assert all(dict(model.named_parameters())[name] is p and p.numel() for name, p in gone.items())


# Averages


@pytest.mark.parametrize("kind", ["averaged", "timm"])
def test_averages_follow_depth_and_resolution(kind):
    model = deit()
    ema = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        if kind == "averaged"
        else ModelEmaV3(model, decay=0.9)
    )
    update = ema.update_parameters if kind == "averaged" else ema.update
    x = image(size=16)
    net = morphogen.trace(model, x)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    small_one = net.subnetwork(depth=0.5, resolution=8)
    morphogen.morph(net, small_one, optimizer=optimizer, ema=ema)
    take_steps(model, optimizer, image(size=8))
    update(model), take_steps(model, optimizer, image(size=8)), update(model)
    before = snapshot(ema.module)
    assert before.keys() == {key for key in snapshot(model) if "/" not in key}
    assert not torch.equal(before["blocks.0.norm1.weight"], model.blocks[0].norm1.weight)
    receipt = morphogen.morph(net, net.dense, optimizer=optimizer, ema=ema)
    after, live = snapshot(ema.module), snapshot(model)
    assert after.keys() == {key for key in live if "/" not in key}
    assert_survivors_equal(net, before, small_one, net.dense, after)
    assert len(receipt.entered) == 3 * len(list(model.blocks[0].parameters()))
    assert all(torch.equal(after[name], live[name]) for name in receipt.entered)
    assert all(tensor.data_ptr() != tensors(ema.module)[n].data_ptr() for n, tensor in receipt.entered.items())
    assert torch.equal(after["pos_embed"][:, :1], before["pos_embed"][:, :1])
    assert ema.module(x).shape == (2, 10)
    take_steps(model, optimizer, x)
    update(model)
    assert not torch.equal(snapshot(ema.module)["blocks.1.norm1.weight"], after["blocks.1.norm1.weight"])


# What else is tied to blocks


def test_hooks_survive_leaving_and_entering():
    model = deit()
    block, fired = model.blocks[3], []
    block.register_forward_hook(lambda *_: fired.append("forward"))
    block.mlp.fc1.weight.register_hook(lambda _: fired.append("gradient"))
    net = morphogen.trace(model, image(size=16))
    morphogen.morph(net, net.subnetwork(depth=0.5))
    model(image(size=16)).sum().backward()
    assert not fired and isinstance(model.blocks[3], Bypass) and net.outside["blocks.3"] is block
    morphogen.morph(net, net.dense)
    assert model.blocks[3] is block
    model(image(size=16)).sum().backward()
    assert fired == ["forward", "gradient"]


def test_a_block_comes_back_in_the_mode_of_the_model():
    model = Tower(4)
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(depth=0.5))
    model.eval()
    morphogen.morph(net, net.dense)
    assert not any(module.training for module in model.modules())


def test_grad_checkpointing_of_timm():
    x = image(size=16)
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = deit()
        model.set_grad_checkpointing(enabled)
        net = morphogen.trace(model, x)
        morphogen.morph(net, net.subnetwork(depth=0.5))
        model.train()(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)


def test_feature_taps_by_index_mean_the_same_dense_block():
    model = deit().eval()
    x = image(size=16)
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(depth=0.5))  # blocks 0, 2, 4
    outputs = {}
    for i in (2, 4):
        model.blocks[i].register_forward_hook(lambda _, __, result, i=i: outputs.update({i: result}))
    with torch.no_grad():
        taps = model.forward_intermediates(x, indices=[2, 3, 4], intermediates_only=True, output_fmt="NLC")
    for tap, block in zip(taps, (2, 2, 4), strict=True):  # block 3 is out and hands on what block 2 returned
        assert torch.equal(tap, outputs[block][:, 1:])


def test_class_attention_hands_on_the_class_token():
    model, side = small("cait_xxs24_224", img_size=16)
    x = image(size=side)
    net = morphogen.trace(model.eval(), x)
    assert {stack.name: stack.passes for stack in net.stacks} == {"blocks": (0,), "blocks_token_only": (1,)}
    morphogen.morph(net, net.subnetwork(blocks={"blocks_token_only": [0]}))
    with torch.no_grad():
        tokens = model.patch_embed(x) + model.pos_embed
        for block in model.blocks:
            tokens = block(tokens)
        cls = model.blocks_token_only[0](tokens, model.cls_token.expand(2, -1, -1))
        expected = model.forward_head(model.norm(torch.cat((cls, tokens), 1)))
        assert torch.equal(model(x), expected)


class TwoStreams(nn.Module):
    """Takes and returns two tensors in a dictionary and a tuple, the second one first."""

    def __init__(self, _):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, state, *, extra):
        return {"pair": (extra + self.b(state), state + self.a(extra))}


class Returning(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(map(TwoStreams, range(depth)))

    def forward(self, x):
        extra = torch.ones_like(x)
        for block in self.blocks:
            extra, x = block(x, extra=extra)["pair"]
        return x - extra


def test_blocks_with_several_values():
    model = Returning(4)
    x = torch.randn(3, 2)
    net = morphogen.trace(model, x)
    assert [(stack.name, stack.size, stack.passes) for stack in net.stacks] == [("blocks", 4, (1, 0))]
    morphogen.morph(net, net.subnetwork(depth=0.5))
    first = model.blocks[0](x, extra=torch.ones_like(x))["pair"]
    second = model.blocks[2](first[1], extra=first[0])["pair"]
    assert torch.equal(model(x), second[1] - second[0])


class Chain(nn.Module):
    """Blocks that are plain attributes."""

    def __init__(self):
        super().__init__()
        self.block1, self.block2, self.block3 = (Numbered(i) for i in (1, 2, 3))

    def forward(self, x):
        return self.block3(self.block2(self.block1(x)))


def test_a_chain_of_attributes_is_a_stack():
    model = Chain()
    net = morphogen.trace(model, torch.randn(4, 2))
    (stack,) = net.stacks
    assert stack.units == (("block1",), ("block2",), ("block3",)) and stack.name == "block1..block3"
    order = list(model.state_dict())
    morphogen.morph(net, net.subnetwork(depth=1 / 3))
    assert list(model.state_dict()) == [name for name in order if name.startswith("block1.")]
    morphogen.morph(net, net.dense)
    assert list(model.state_dict()) == order
    assert [round(getattr(model, f"block{i}").read.weight.mean().item()) for i in (1, 2, 3)] == [1, 1, 1]


def test_shared_blocks_are_no_stack():
    tied = Stacked(4)
    tied.blocks = nn.ModuleList([tied.blocks[0]] * 4)
    assert not morphogen.trace(tied, torch.randn(2, 3)).stacks
    shared_weight = Stacked(4)
    for block in shared_weight.blocks[1:]:
        block.write.weight = shared_weight.blocks[0].write.weight
    assert not morphogen.trace(shared_weight, torch.randn(2, 3)).stacks
    twice = Stacked(4)
    twice.blocks.append(twice.blocks[1])  # block 1 runs again at the end
    stacks = morphogen.trace(twice, torch.randn(2, 3)).stacks
    assert [stack.blocks for stack in stacks] == [("blocks.2", "blocks.3")]


def test_a_shallow_vit_computes_what_a_shallow_vit_computes():
    model = deit()
    x = image(size=16)
    net = morphogen.trace(model.eval(), x)
    morphogen.morph(net, net.subnetwork(blocks={"blocks": [1, 2, 5]}))
    native = deit(depth=3).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] = {"1": "0", "2": "1", "5": "2"}[parts[1]]
        state[".".join(parts)] = tensor
    native.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(model(x), native(x))


# Stochastic depth


def rates_of(model, kind=timm.layers.DropPath, attribute="drop_prob"):
    return {path: getattr(m, attribute) for path, m in model.named_modules() if isinstance(m, kind)}


def test_drop_path_of_half_a_vit_by_hand():
    model = small("deit_tiny_patch16_224", depth=12, img_size=16, drop_path_rate=0.1)[0]
    dense = rates_of(model)
    net = morphogen.trace(model, image(size=16))
    half = net.subnetwork(depth=0.5)
    morphogen.morph(net, half)
    expected = {
        f"blocks.{i}.drop_path{n}": rate
        for i, rate in zip((2, 4, 6, 8, 10), (0.02, 0.04, 0.06, 0.08, 0.1), strict=True)
        for n in (1, 2)
    }  # the first block has rate 0 and no module
    assert rates_of(model) == pytest.approx(expected)
    net.drop_path_scale = 0.5
    lay_out_drop_path(net)
    assert rates_of(model) == pytest.approx({path: rate / 2 for path, rate in expected.items()})
    morphogen.morph(net, net.dense)
    assert rates_of(model) == pytest.approx({path: rate / 2 for path, rate in dense.items()})
    net.drop_path_scale = 1.0
    lay_out_drop_path(net)
    assert rates_of(model) == pytest.approx(dense) and len(dense) == 22
    model.train()(image(size=16)).sum().backward()


def test_drop_path_zero_has_no_modules_and_stays_so():
    model = deit(drop_path_rate=0.0)
    net = morphogen.trace(model, image(size=16))
    assert not any(net.stacks[0].drop_path)
    morphogen.morph(net, net.subnetwork(depth=0.5))
    morphogen.morph(net, net.dense)
    assert not rates_of(model)


def test_stochastic_depth_of_torchvision():
    setting = [CNBlockConfig(8, 12, 2), CNBlockConfig(12, None, 5)]
    model = torchvision.models.ConvNeXt(setting, stochastic_depth_prob=0.6, num_classes=10)
    kind = torchvision.ops.StochasticDepth
    assert list(rates_of(model, kind, "p").values()) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    net = morphogen.trace(model, image(size=16))
    assert [(stack.name, stack.size) for stack in net.stacks] == [("features.1", 2), ("features.3", 5)]
    morphogen.morph(net, net.subnetwork(depth={"features.1": 0.5, "features.3": 0.6}))
    # 1 of 2 and 3 of 5: each stack from its first rate to its last one
    assert list(rates_of(model, kind, "p").values()) == pytest.approx([0, 0.2, 0.4, 0.6])
    model.train()(image(size=16)).sum().backward()


# Refusals


def refused(net, target, optimizer, match, **settings):
    before, current, outside = snapshot(net.model, optimizer), net.current, dict(net.outside)
    modules = dict(net.model.named_modules())
    with pytest.raises(match[0], match=match[1]):
        morphogen.morph(net, target, optimizer=optimizer, **settings)
    assert_unchanged(net, before, current, optimizer)
    assert net.outside == outside and dict(net.model.named_modules()) == modules


def wrong_shape(entry):
    value = entry.copy(entry.below)
    return value[:1] if entry.name == "blocks.3.norm.bias" else value


def wrong_dtype(entry):
    return entry.copy(entry.below).double()


def nothing(entry):
    return None


def raising(entry):
    if entry.name == "blocks.3.norm.bias":
        raise ZeroDivisionError("on purpose")
    return entry.copy(entry.below).fill_(7)


def spoiling(entry):
    """Writes into the copies it is given, which are its own."""
    for unit in entry.before:
        entry.copy(unit).fill_(7)
    return wrong_shape(entry)


@pytest.mark.parametrize(
    "operator, match",
    [
        (wrong_shape, (morphogen.MorphError, r"blocks\.3\.norm\.bias.*unfit value.*\(12,\).*\(1,\)")),
        (wrong_dtype, (morphogen.MorphError, r"unfit value.*float32.*float64")),
        (nothing, (morphogen.MorphError, r"unfit value.*None")),
        (raising, (ZeroDivisionError, "on purpose")),
        (spoiling, (morphogen.MorphError, "unfit value")),
        ("magic", (morphogen.MorphError, r"no depth operator 'magic'.*interpolate.*stack")),
        ("momentum", (morphogen.MorphError, r"'momentum' needs a momentum network.*momentum=")),
        ("mogrow", (morphogen.MorphError, r"'mogrow' needs a momentum network")),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (value if isinstance(value, str) else ""),
)
def test_a_failing_depth_operator_changes_nothing(operator, match):
    model = Tower(4)
    optimizer = torch.optim.Adam(model.parameters())
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(depth=0.5), optimizer=optimizer)
    take_steps(model, optimizer, image())
    refused(net, net.dense, optimizer, match, depth_operator=operator)
    morphogen.morph(net, net.dense, optimizer=optimizer)


def foreign(kind, model):
    return {"another architecture": lambda: Stacked(2), "another size": lambda: Tower(4)}[kind]()


FOREIGN = pytest.mark.parametrize("kind", ["another architecture", "another size"])


@FOREIGN
@pytest.mark.parametrize("grows", [True, False], ids=["growing", "shrinking"])
@pytest.mark.parametrize("role", ["momentum", "ema"])
def test_a_foreign_average_is_refused(role, grows, kind):
    """`another size`: the momentum network, or EMA copy, was left out of an earlier morph."""
    model = Tower(4)
    optimizer = torch.optim.Adam(model.parameters())
    net = morphogen.trace(model, image())
    steps = [net.subnetwork(depth=0.5), net.dense] if grows else [net.subnetwork(depth=0.75), net.subnetwork(depth=0.5)]
    morphogen.morph(net, steps[0], optimizer=optimizer)
    average = {role: foreign(kind, model)}
    operator = "mogrow" if role == "momentum" else "interpolate"
    match = (morphogen.MorphError, "current sub-network")
    refused(net, steps[1], optimizer, match, depth_operator=operator, **average)


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


def test_bad_positions_are_refused():
    net = numbered(4)
    for bad in ([], [4], [-1, 0], [0, 0], ["a"]):
        with pytest.raises(morphogen.SubNetworkError, match="blocks"):
            net.subnetwork(blocks={"blocks": bad})
    with pytest.raises(morphogen.SubNetworkError, match="no such"):
        net.subnetwork(blocks={"layers": [0]})
    with pytest.raises(morphogen.SubNetworkError, match="out of range"):
        net.subnetwork(depth=0.0)
    with pytest.raises(morphogen.SubNetworkError, match="no block"):
        net.subnetwork(depth=0.1)
    assert net.subnetwork(depth=1.0) == net.dense


def test_optimizers_that_share_a_stack_by_depth_keep_their_own_blocks():
    model = Tower(6)
    lower = [p for block in model.blocks[:3] for p in block.parameters()]
    rest = [p for p in model.parameters() if all(p is not other for other in lower)]
    optimizers = [torch.optim.AdamW(lower, 1e-3), torch.optim.SGD(rest, 0.1)]
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(depth=0.5), optimizer=optimizers)
    morphogen.morph(net, net.dense, optimizer=optimizers)
    held = [[id(p) for group in o.param_groups for p in group["params"]] for o in optimizers]
    assert held == [[id(p) for p in lower], [id(p) for p in rest]]


def test_a_swin_grows_with_its_averages():
    """Masks that the small size does not need are made for the averages too."""
    model, side = small("swin_tiny_patch4_window7_224", img_size=32, depths=(2, 4), num_heads=(1, 2), window_size=2)
    net = morphogen.trace(model, image(size=side))
    morphogen.morph(net, net.subnetwork(depth=0.5, resolution=side // 2))
    ema, momentum = AveragedModel(model), morphogen.MomentumNetwork(model, 0.5)
    morphogen.morph(net, net.dense, ema=ema, momentum=momentum, depth_operator="mogrow")
    x = image(size=side)
    with torch.no_grad():
        expected = model.eval()(x)
        torch.testing.assert_close(momentum.module.eval()(x), expected)
        torch.testing.assert_close(ema.module.eval()(x), expected)


NARROW = {"embed_dim": 24, "depth": 4, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "settings", "stacks"),
    [
        (
            "beit_base_patch16_224",
            {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2},
            {"blocks": 4},
        ),
        ("eva02_tiny_patch14_224", {"img_size": 28, "embed_dim": 24, "depth": 4, "num_heads": 2}, {"blocks": 4}),
        ("regnety_002", {}, {"s3.b2..b4": 3, "s4.b2..b7": 6}),
        ("mobilenetv2_100", {}, {"blocks.2.1..2": 2, "blocks.3.1..3": 3, "blocks.4.1..2": 2, "blocks.5.1..2": 2}),
    ],
)
def test_stacks_of_other_families(name, settings, stacks):
    model = timm.create_model(name, num_classes=3, **settings)
    side = settings.get("img_size", 32)
    net = morphogen.trace(model, image(size=side))
    assert {stack.name: stack.size for stack in net.stacks} == stacks
    morphogen.morph(net, net.subnetwork(depth=0.5, resolution=side // 2 if side == 32 else None))
    morphogen.morph(net, net.dense)
    timm.create_model(name, num_classes=3, **settings).load_state_dict(model.state_dict())


def test_what_would_stop_a_later_stage_stops_the_first():
    method = morphogen.NetworkExpansion(depth=0.5, stages=2, depth_operator="identity")
    model = Stacked(4, PostNorm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(morphogen.MorphError, match="cannot silence"):
        morphogen.attach(model, torch.optim.SGD(model.parameters(), 0.1), method, example=torch.randn(2, 3), epochs=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_stochastic_depth_outside_stacks_is_scaled_too():
    model = timm.create_model(
        "convnext_atto", depths=(1, 2, 1, 1), dims=(8, 8, 8, 8), drop_path_rate=0.4, num_classes=3
    )
    net = morphogen.trace(model, image(size=32))
    net.drop_path_scale = 0.5
    lay_out_drop_path(net)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2])

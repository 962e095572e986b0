"""Optimizers follow the depth: groups, their order, moments."""

import pytest
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

import morphogen

from checks import (
    assert_optimizer_holds_model,
    assert_survivors_equal,
    names_in_groups,
    snapshot,
    take_steps,
)
from nets import Tower, deit, image

GROUPINGS = {
    "layer decay": lambda model: param_groups_layer_decay(model, 0.05, layer_decay=0.75),
    "weight decay": lambda model: param_groups_weight_decay(model, 0.05),
}


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
    optimizer.load_state_dict(optimizer.state_dict())  # has new groups then, as where other libraries place the state
    morphogen.morph(net, net.dense, optimizer=optimizer)
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

"""Momentum networks and EMA copies follow the depth."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import morphogen

from checks import (
    assert_survivors_equal,
    snapshot,
    take_steps,
    tensors,
)
from nets import Tower, deit, image, small


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


@pytest.mark.nightly
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

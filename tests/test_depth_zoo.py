"""timm's networks through four stages of depth and resolution, as Prog grows them."""

import pytest
import torch

import morphogen

from checks import assert_optimizer_holds_model, assert_survivors_equal, perturb, snapshot, take_steps
from nets import SMALL, image, small

STACKS = {
    "deit_tiny_patch16_224": {"blocks": 4},
    "volo_d1": {"network.2": 2, "network.3": 3, "post_network": 2},
    "swin_tiny_patch4_window7_224": {"layers.1.blocks": 3},  # units of two
    "convnext_tiny": {"stages.2.blocks": 4, "stages.3.blocks": 2},
    "cait_xxs24_224": {"blocks": 4, "blocks_token_only": 2},
    "xcit_nano_12_p16_224": {"blocks": 4, "cls_attn_blocks": 2},
    "pvt_v2_b0": {"stages.2.blocks": 4, "stages.3.blocks": 2},
    "resnet50": {"layer2.1..2": 2, "layer3.1..3": 3},  # the first block of a stage is wider
}
EVERY_CHANGE = ("deit_tiny_patch16_224",)
"""The others run with `pytest -m nightly`."""


def test_all_small_networks_are_here():
    assert STACKS.keys() == SMALL.keys()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in EVERY_CHANGE else pytest.mark.nightly) for name in STACKS]
)
def test_four_stages(name):
    model, side = small(name)
    perturb(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x = image(size=side)
    net = morphogen.trace(model, x)
    assert {stack.name: stack.size for stack in net.stacks} == STACKS[name]
    stages = morphogen.Prog(stages=4).schedule(net, 4)
    for stage in stages:
        old, before = net.current, snapshot(model, optimizer)
        morphogen.morph(net, stage.subnetwork, optimizer=optimizer, depth_operator="interpolate")
        assert_survivors_equal(net, before, old, net.current, snapshot(model, optimizer))
        assert_optimizer_holds_model(model, optimizer)
        height, width = net.current.resolution
        take_steps(model, optimizer, torch.randn(2, 3, height, width), steps=1)
    depths = [sum(map(len, stage.subnetwork.blocks.values())) for stage in stages]
    assert depths == sorted(depths) and depths[0] == sum((depth + 1) // 2 for depth in STACKS[name].values())
    assert net.current == net.dense and not net.outside
    fresh, _ = small(name)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(x), fresh.eval()(x))

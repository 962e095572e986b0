"""Stochastic depth is laid out anew over the blocks that are there."""

import pytest
import timm
import torchvision
from torchvision.models.convnext import CNBlockConfig

import morphogen
from morphogen.morph.drop_path import lay_out_drop_path

from nets import deit, image, small


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


def test_stochastic_depth_outside_stacks_is_scaled_too():
    model = timm.create_model(
        "convnext_atto", depths=(1, 2, 1, 1), dims=(8, 8, 8, 8), drop_path_rate=0.4, num_classes=3
    )
    net = morphogen.trace(model, image(size=32))
    net.drop_path_scale = 0.5
    lay_out_drop_path(net)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2])

"""Groups, channels, parameters and FLOPs of five small nets, worked out by hand."""

import pytest

import morphogen
from morphogen.cost.flops import cost

from nets import Concat, Grouped, Plain, Residual, SqueezeExcite, image

# A convolution costs 2 * out * (in / groups) * taps * positions FLOPs, a linear layer 2 * out * in.
# Backward: one such product for the weights, one for the inputs, which the first layer does not need.


def test_plain():
    net = morphogen.trace(Plain(), image())
    assert [(g.name, g.size, g.channels) for g in net.groups] == [("conv1", 8, 8), ("conv2", 16, 16)]
    assert net.groups[0].members == (
        "conv1.weight[0]",
        "bn1.weight[0]",
        "bn1.bias[0]",
        "conv2.weight[1]",
        "bn1.running_mean[0]",
        "bn1.running_var[0]",
    )
    assert net.groups[1].members == ("conv2.weight[0]", "conv2.bias[0]", "fc.weight[1]")
    # dense: 3*8*9 + 2*8 + 8*16*9 + 16 + 256*10 + 10; half: 3*4*9 + 2*4 + 4*8*9 + 8 + 128*10 + 10
    dense, half = cost(net, net.dense), cost(net, net.subnetwork(width=0.5))
    assert (dense.parameters, half.parameters) == (3970, 1702)
    # conv1 at 8 x 8, conv2 at 4 x 4
    first, second, last = 2 * 8 * 3 * 9 * 64, 2 * 16 * 8 * 9 * 16, 2 * 256 * 10
    assert (dense.forward, dense.training) == (first + second + last, 2 * first + 3 * second + 3 * last)
    assert half.forward == first // 2 + second // 4 + last // 2 == 13824 + 9216 + 2560
    morphogen.morph(net, net.subnetwork(width=0.5))
    model = net.model
    assert (
        model.conv1.out_channels,
        model.bn1.num_features,
        model.conv2.in_channels,
        model.conv2.out_channels,
        model.fc.in_features,
        model.fc.out_features,
    ) == (4, 4, 4, 8, 128, 10)
    assert sum(p.numel() for p in model.parameters()) == 1702


def test_residual():
    net = morphogen.trace(Residual(), image())
    assert [(g.name, g.size) for g in net.groups] == [("stem", 8), ("conv1", 12)]
    # the stem's channels are also conv2's, because of the addition
    assert {"stem.weight[0]", "conv1.weight[1]", "conv2.weight[0]", "bn2.weight[0]", "fc.weight[1]"} <= set(
        net.groups[0].members
    )
    assert {"conv1.weight[0]", "bn1.weight[0]", "conv2.weight[1]"} <= set(net.groups[1].members)
    # 216 + 16 + 864 + 24 + 864 + 16 + 90; at half: 108 + 8 + 216 + 12 + 216 + 8 + 50
    assert cost(net, net.dense).parameters == 2090
    assert cost(net, net.subnetwork(width=0.5)).parameters == 618
    assert cost(net, net.dense).forward == 2 * 64 * (216 + 864 + 864) + 2 * 80
    assert cost(net, net.subnetwork(width=0.5)).forward == 2 * 64 * (108 + 216 + 216) + 2 * 40


def test_concat():
    net = morphogen.trace(Concat(), image())
    assert [(g.name, g.size) for g in net.groups] == [("left", 8), ("right", 4), ("join", 16)]
    morphogen.morph(net, net.subnetwork(alive={"left": [1, 3], "right": [0]}))
    assert tuple(net.model.join.weight.shape) == (16, 3, 1, 1) and net.model.join.in_channels == 3
    # 2*3+2 + 1*27+1 + 16*3+16 + 170
    assert sum(p.numel() for p in net.model.parameters()) == 270
    assert cost(net, net.current).parameters == 270
    assert cost(net, net.current).forward == 2 * 64 * (2 * 3 + 27 + 16 * 3) + 2 * 160


def test_grouped_and_depthwise():
    net = morphogen.trace(Grouped(), image())
    # two groups are kept: the same positions of each; eight groups of four inputs go as wholes
    assert [(g.name, g.size, g.channels, g.unit) for g in net.groups] == [
        ("stem", 4, 8, 2),
        ("two", 6, 12, 2),
        ("widen", 8, 32, 4),
    ]
    morphogen.morph(net, net.subnetwork(alive={"stem": [0, 3], "two": [0, 1, 2], "widen": [1, 5]}))
    model = net.model
    assert (model.depthwise.groups, model.depthwise.in_channels, model.depthwise.out_channels) == (4, 4, 4)
    assert (model.two.groups, tuple(model.two.weight.shape)) == (2, (6, 2, 3, 3))
    assert (model.eight.groups, tuple(model.eight.weight.shape)) == (2, (4, 4, 3, 3))
    assert (model.eight.in_channels, model.eight.out_channels, model.norm.num_features) == (8, 4, 4)
    # stem 4*3+4, depthwise 4*9+4, two 6*2*9+6, widen 8*6+8, eight 4*4*9+4, norm 8, fc 40+10
    assert sum(p.numel() for p in model.parameters()) == 16 + 40 + 114 + 56 + 148 + 8 + 50
    assert cost(net, net.current).forward == 2 * 64 * (12 + 36 + 108 + 48 + 144) + 2 * 40


def test_squeeze_excitation():
    net = morphogen.trace(SqueezeExcite(), image())
    assert [(g.name, g.size) for g in net.groups] == [("conv", 16), ("reduce", 4)]
    assert set(net.groups[0].members) == {
        "conv.weight[0]",
        "conv.bias[0]",
        "reduce.weight[1]",
        "expand.weight[0]",
        "expand.bias[0]",
        "fc.weight[1]",
    }
    half = cost(net, net.subnetwork(width=0.5))
    # conv 8*27+8, reduce 2*8+2, expand 8*2+8, fc 80+10
    assert half.parameters == 224 + 18 + 24 + 90
    assert half.forward == 2 * (64 * 216 + 16 + 16 + 80)


def test_what_is_pinned_and_why():
    net = morphogen.trace(Plain(), image())
    reasons = {pin.axis: pin.reason for pin in net.pinned}
    assert "input" in reasons["conv1.weight[1]"]
    assert reasons["fc.weight[0]"] == reasons["fc.bias[0]"] == "output of the model"
    assert set(reasons) == {"conv1.weight[1]", "fc.weight[0]", "fc.bias[0]"}


def test_excluded_modules_stay_whole():
    net = morphogen.trace(Plain(), image(), exclude=["conv2"])
    assert net.groups == ()
    reasons = {pin.axis: pin.reason for pin in net.pinned}
    assert "excluded" in reasons["conv2.weight[0]"] and "excluded" in reasons["conv1.weight[0]"]
    with pytest.raises(morphogen.TraceError, match="conv9"):
        morphogen.trace(Plain(), image(), exclude=["conv9"])

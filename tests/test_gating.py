"""Channel gating agrees with channel union, and computes on less."""

import copy
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import morphogen
from morphogen.train.models import build_model

import checks
from nets import NETS, Plain, Residual, image, small
from nightly import often

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from channel_gating import Gated, gated


def plant(net: morphogen.Network, share: float = 0.4) -> None:
    """Set random input and output channels of every layer to zero, layer by layer, but one of each at least.

    Straight from the layouts, so that it shares nothing with what reads sparsity off the weights.
    """
    alive = net.structure.alive_mask(net.current)
    tensors = dict(net.model.named_parameters())
    with torch.no_grad():
        for name, layout in net.structure.present(net.current).items():
            if layout.role.kind != "weight":
                continue
            for dim in {*layout.role.outs, *layout.role.ins}:
                axis = layout.axes[dim]
                if axis is not None:
                    units = axis[alive[axis]].unique()
                    gone = units[torch.rand(len(units)) < share][: len(units) - 1]
                    tensors[name].index_fill_(dim, torch.isin(axis[alive[axis]], gone).nonzero().flatten(), 0.0)


def traced(model: nn.Module, side: int, dtype=torch.float32) -> tuple[morphogen.Network, torch.Tensor]:
    """A planted network and images for it."""
    checks.perturb(model)
    images = image(4, side).to(dtype)
    net = morphogen.trace(model.to(dtype), images)
    plant(net)
    return net, images


def gates(model: nn.Module) -> dict[str, Gated]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Gated)}


def flops(model: nn.Module, images: torch.Tensor) -> tuple[int, int]:
    """Of a forward pass, and of a forward and a backward one."""
    with FlopCounterMode(display=False) as counter:
        output = model(images)
        forward = counter.get_total_flops()
        output.sum().backward()
    return forward, counter.get_total_flops()


def assert_gradients_agree(union: nn.Module, other: nn.Module, tolerance: float) -> None:
    """Every gradient of the gated network is the same slice of that of the union network."""
    theirs, doors = dict(union.named_parameters()), gates(other)
    compared = 0
    for name, parameter in other.named_parameters():
        path, _, leaf = name.rpartition(".")
        owner = path.removesuffix(".layer")
        expected = theirs[f"{owner}.{leaf}" if owner else leaf].grad
        if owner in doors and leaf == "weight":
            for dim, chosen in enumerate((doors[owner].outputs, doors[owner].inputs)):
                if chosen is not None:
                    expected = expected.index_select(dim, chosen)
        torch.testing.assert_close(parameter.grad, expected, rtol=tolerance, atol=tolerance)
        compared += 1
    assert compared == len(theirs)


CASES = {name: (make, 8) for name, make in NETS.items()}
CASES |= {"resnet20": (lambda: build_model("resnet20(width=8)", 10), 16)}
CASES |= {"resnet50": (lambda: small("resnet50")[0], 64), "deit_tiny": (lambda: small("deit_tiny_patch16_224")[0], 32)}


@pytest.mark.parametrize(
    ("name", "training", "dtype"),
    often(
        product(CASES, (False, True), (torch.float64, torch.float32)),
        lambda case: case[0] != "resnet50" and (case[2] == torch.float64 or case[0] == "Residual"),
    ),
)
def test_union_and_gating_agree_in_function(name, training, dtype):
    make, side = CASES[name]
    net, images = traced(make(), side, dtype)
    union, other = copy.deepcopy(net.model).train(training), gated(net).train(training)
    assert gates(other)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    outputs = [model(images) for model in (union, other)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weights).sum().backward()
    assert_gradients_agree(union, other, 1e-9 if dtype == torch.float64 else 1e-3)
    statistics = dict(other.named_buffers())
    for buffer_name, buffer in union.named_buffers():
        torch.testing.assert_close(statistics[buffer_name], buffer, rtol=tolerance, atol=tolerance)


def test_a_net_with_nothing_sparse_has_no_gates():
    model = Residual()
    checks.perturb(model)
    other = gated(morphogen.trace(model, image()))
    assert not gates(other) and other is not model
    assert flops(other, image()) == flops(model, image())


def test_flops_of_a_small_net_by_hand():
    model = Residual()
    checks.perturb(model)
    images = image(2)
    net = morphogen.trace(model, images)
    with torch.no_grad():
        model.conv1.weight[:, [0, 2]] = 0  # reads 6 of 8, writes 9 of 12
        model.conv1.weight[9:] = 0
        model.conv2.weight[:, :5] = 0  # reads 7 of 12, writes 3 of 8
        model.conv2.weight[3:] = 0
    other = gated(net)
    assert gates(other).keys() == {"conv1", "conv2"}
    assert other.conv1.layer.weight.shape == (9, 6, 3, 3)
    assert (other.conv2.layer.in_channels, other.conv2.layer.out_channels) == (7, 3)
    taps = 2 * 2 * 8 * 8 * 9  # two a multiplication and addition, images, pixels, kernel
    stem, head = taps * 3 * 8, 2 * 2 * 8 * 10
    union, gate = flops(model, images), flops(other, images)
    assert union[0] == taps * (8 * 12 + 12 * 8) + stem + head
    assert gate[0] == taps * (6 * 9 + 7 * 3) + stem + head
    for forward, training in (union, gate):  # backward: weights and inputs, but not the image's
        assert training == 3 * forward - stem


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_that_is_sparse_throughout_writes_its_bias(bias):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, bias=bias), nn.Flatten(), nn.Linear(8 * 16, 2)
    )
    checks.perturb(model)
    net = morphogen.trace(model, image())
    with torch.no_grad():
        model[2].weight.fill_(5e-5)
    other = gated(net)
    assert other[2].layer.weight.shape == (1, 1, 3, 3)
    with torch.no_grad():
        model[2].weight.zero_()
    images = image()
    torch.testing.assert_close(other(images), model(images))


def test_after_a_morph_the_gates_are_those_of_the_channels_left():
    net, images = traced(Plain(), 8)
    half = net.subnetwork(width=0.5)
    morphogen.morph(net, half)
    torch.testing.assert_close(gated(net)(images), net.model(images), rtol=1e-5, atol=1e-5)
    assert gates(gated(net))["fc"].layer.in_features % 16 == 0  # whole channels of 4 x 4 pixels


def test_the_memory_format_goes_through_a_gate():
    net, images = traced(Residual(), 8)
    net.model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    other, formats = gated(net), []
    for gate in (other.conv1, other.conv2):
        assert gate.layer.weight.is_contiguous(memory_format=torch.channels_last)
        gate.register_forward_hook(lambda _, inputs, output: formats.append((*inputs, output)))
    torch.testing.assert_close(other(images), net.model(images), rtol=1e-5, atol=1e-5)
    through = [t for pair in formats for t in pair]
    assert len(through) == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in through)


def test_the_network_itself_is_left_alone():
    net, _ = traced(Residual(), 8)
    before = checks.snapshot(net.model)
    other = gated(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    checks.assert_unchanged(net, before, net.dense)
    assert not gates(net.model)

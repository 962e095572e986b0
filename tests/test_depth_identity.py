"""Blocks that enter silently: by `identity` the function stays as it is, or the morph is refused."""

import pytest
import torch
from torch import nn

import morphogen
from morphogen.dense.bypass import Bypass

from checks import (
    assert_unchanged,
    perturb,
    snapshot,
)
from nets import Stacked, small


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "convnext_tiny",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("volo_d1", "resnet50")),
    ],
)
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


@pytest.mark.nightly
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


def test_what_would_stop_a_later_stage_stops_the_first():
    method = morphogen.NetworkExpansion(depth=0.5, stages=2, depth_operator="identity")
    model = Stacked(4, PostNorm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(morphogen.MorphError, match="cannot silence"):
        morphogen.attach(model, torch.optim.SGD(model.parameters(), 0.1), method, example=torch.randn(2, 3), epochs=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

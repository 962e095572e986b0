"""Some CNNs of torchvision: prune to half, compare with the masked dense network, grow back. benchmarks/zoo has all."""

import warnings

import pytest
import torch
import torchvision
from torch import nn

import morphogen

from checks import assert_equals_masked_dense, randomise_statistics
from nets import Residual, image

PER_CHANNEL = "resnet18 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x1_0 squeezenet1_0".split()
OTHERS = ["convnext_tiny"]  # layer norm: statistics over channels

EVERY_CHANGE = "resnet18", "squeezenet1_0"
"""What reads these reads the others, as a rule; the others run with `pytest -m nightly`."""

WHOLE = {
    # Channel shuffle and split tie all channels of a stage to each other: a narrower stage would be shuffled
    # differently and so be no sub-network of the dense one. These convolutions join such stages.
    "shufflenet_v2_x1_0": {"stage3.0.branch1.0", "stage3.0.branch1.2", "stage4.0.branch1.0"},
}


def build(name, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torchvision.models.get_model(name, weights=None, **settings)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in EVERY_CHANGE else pytest.mark.nightly) for name in PER_CHANNEL + OTHERS],
)
def test_prune_then_grow(name):
    model = build(name).double()  # differences of summation order must not grow through a hundred layers
    randomise_statistics(model)
    x = torch.randn(2, 3, 64, 64).double()
    net = morphogen.trace(model, x)
    half = net.subnetwork(width=0.5)
    dense = {path: tuple(m.weight.shape) for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if name in PER_CHANNEL:
        assert_equals_masked_dense(net, half, x)
    else:
        morphogen.morph(net, half)
    whole = {path for path, shape in dense.items() if tuple(model.get_submodule(path).weight.shape) == shape}
    assert whole == WHOLE.get(name, set())
    morphogen.morph(net, net.dense, operator="random")
    fresh = build(name).double()
    fresh.load_state_dict(model.state_dict())
    model.eval()
    fresh.eval()
    with torch.no_grad():
        assert torch.equal(model(x), fresh(x))


@pytest.mark.nightly
def test_auxiliary_heads_follow_too():
    """GoogLeNet's auxiliary classifiers run in training alone; they must still fit after a morph."""
    model = build("googlenet", init_weights=False)  # its own initialisation takes seconds
    net = morphogen.trace(model, torch.randn(2, 3, 64, 64))
    morphogen.morph(net, net.subnetwork(width=0.5))
    model.train()
    output = model(torch.randn(2, 3, 64, 64))
    (output.logits.sum() + output.aux_logits1.sum() + output.aux_logits2.sum()).backward()
    assert model.aux1.conv.conv.weight.shape[1] == 256


class Auxiliary(Residual):
    """A second head, behind the first layers, that runs in training alone."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(8, 10)

    def forward(self, x):
        output = super().forward(x)
        return (output, self.aux(torch.relu(self.bn(self.stem(x))).mean((2, 3)))) if self.training else output


def test_a_small_networks_auxiliary_head_follows_too():
    model = Auxiliary()
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    output, auxiliary = model.train()(image())
    (output.sum() + auxiliary.sum()).backward()
    assert model.aux.weight.shape == (10, 4)

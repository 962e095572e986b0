"""The networks for small images, and shortcuts that are padded with channels of zeros (option A)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import morphogen
from morphogen.errors import ConfigError
from morphogen.train.cifar_resnet import CifarResNet
from morphogen.train.models import build_model

from checks import assert_equals_masked_dense, randomise_statistics
from nets import image


@pytest.mark.parametrize(
    ("name", "parameters", "layers", "mflops"),
    [
        ("resnet20(shortcut='pad')", 269_722, 20, 81.1),  # 0.27 M (He et al., Table 6)
        ("resnet56(shortcut='pad')", 853_018, 56, 251.0),  # 0.85 M
        ("cifar_resnet50", 776_794, 77, 227.9),  # "the dense 230 MFLOPs" (PruneTrain, section 5.2)
        ("resnet56(bottleneck=True)", 869_530, 86, 254.6),  # 18 layers are 21 % (PruneTrain, Table 3)
        ("cifar_vgg11", 9_228_362, 9, 305.5),
        ("cifar_vgg13", 9_413_066, 11, 456.5),
    ],
)
def test_the_papers_networks_for_cifar(name, parameters, layers, mflops):
    model = build_model(name, 10).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == layers
    with FlopCounterMode(display=False) as counter:
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert counter.get_total_flops() / 1e6 == pytest.approx(mflops, abs=0.1)
    assert build_model(name, 100).eval()(torch.zeros(2, 3, 16, 16)).shape == (2, 100)


def test_option_a_by_hand():
    """Every second pixel of the old channels, then zeros."""
    shortcut = CifarResNet(8, width=4, shortcut="pad").layer2[0].shortcut
    x = torch.randn(2, 4, 6, 6)
    y = shortcut(x)
    assert y.shape == (2, 8, 3, 3) and torch.equal(y[:, :4], x[:, :, ::2, ::2]) and not y[:, 4:].any()


@pytest.mark.parametrize("settings_", [{"depth": 9}, {"depth": 2}, {"depth": 8, "shortcut": "A"}])
def test_what_is_no_cifar_resnet_is_refused(settings_):
    with pytest.raises(ConfigError, match="CifarResNet: no such"):
        CifarResNet(**settings_)


class Padded(nn.Module):
    """A shortcut padded on both sides, by what `sides` gives, with `value`."""

    def __init__(self, sides, value=0.0):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.behind = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 10)
        self.before, self.after, self.quarter, self.sides, self.value = 1, 3, 4, sides, value

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        y = self.behind(self.conv(x))
        before, after = self.sides(self, x, y)
        return self.fc(F.relu(y + F.pad(x, (0, 0, 0, 0, before, after), value=self.value)).mean((2, 3)))


def counted(net, x, y):
    return net.before, net.after


def by_shapes(net, x, y):
    return 0, y.shape[1] - x.shape[1]


def written(net, x, y):
    return 2, 2


def modulo(net, x, y):
    return 0, -x.shape[1] % 12


NETS = {
    "resnet8": lambda: CifarResNet(8, width=4, shortcut="pad"),
    "bottlenecks": lambda: CifarResNet(14, width=4, shortcut="pad", bottleneck=True),
    "counted": lambda: Padded(counted),
    "counted, a constant": lambda: Padded(counted, 0.5),
    "by shapes": lambda: Padded(by_shapes),
    "written": lambda: Padded(written),
    "modulo": lambda: Padded(modulo),
}


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=settings().max_examples // 20, deadline=None)
@given(data=st.data())
def test_a_narrow_network_with_padded_shortcuts_equals_the_masked_dense_one(name, data):
    model = NETS[name]()
    randomise_statistics(model)
    net = morphogen.trace(model, image())
    alive = {g.name: data.draw(st.lists(st.integers(0, g.size - 1), min_size=1, unique=True)) for g in net.groups}
    assert_equals_masked_dense(net, net.subnetwork(alive=alive), image())


def test_channels_that_are_padded_with_zeros_are_a_group_of_their_own():
    """Stage 1's channels go on through all stages, beside those that each stage adds."""
    net = morphogen.trace(CifarResNet(8, width=4, shortcut="pad"), image())
    sizes = {group.name: group.size for group in net.groups}
    assert sizes["conv1"] == 4 and sizes["layer2.0.conv2[4:8]"] == 4 and sizes["layer3.0.conv2[8:16]"] == 8
    half = net.subnetwork(width=0.5)
    morphogen.morph(net, half)
    assert net.model.layer2[0].shortcut.new == 2 and net.model.layer3[0].shortcut.new == 4
    stages = net.model.layer1, net.model.layer2, net.model.layer3
    assert [stage[0].conv2.out_channels for stage in stages] == [2, 4, 8]


@pytest.mark.parametrize(("sides", "fixed"), [(counted, False), (written, True), (modulo, True)])
def test_numbers_that_are_not_followed_keep_the_channels_whole(sides, fixed):
    net = morphogen.trace(Padded(sides), image())
    assert (len(net.groups) == 0) == fixed

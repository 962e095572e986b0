"""What sparse weights say may go: channels that no layer uses, blocks that pass their input on."""

import copy
import warnings

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import DenseNet, MobileNetV2, ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

import morphogen
from morphogen.pruning.sparsity import sparse_part

from checks import (
    assert_equals_masked_dense,
    assert_optimizer_holds_model,
    assert_survivors_equal,
    perturb,
    snapshot,
    take_steps,
)
from nets import NETS, PER_CHANNEL, Concat, Plain, Residual, Tower, image, small
from nightly import often
from planted import plant_sparse

LIMIT = 1e-4


def some(net, groups=None):
    """A sub-network with about two thirds of the units of each of these groups, drawn at random."""
    alive = {}
    for group in net.groups if groups is None else groups:
        order = torch.randperm(group.size)
        alive[group.name] = order[: max(1, group.size * 2 // 3)].tolist()
    return net.subnetwork(alive=alive)


def resnet():
    return ResNet(BasicBlock, [1, 3, 1, 1], num_classes=10)


def resnext():
    return ResNet(Bottleneck, [1, 2, 1, 1], num_classes=10, groups=8, width_per_group=4)


def densenet():
    return DenseNet(8, (2, 2), 16, num_classes=10)


def mobilenet():
    rows = [[1, 16, 1, 1], [6, 24, 3, 2]]
    return MobileNetV2(num_classes=10, width_mult=0.25, inverted_residual_setting=rows)


@pytest.mark.parametrize("make", often([resnet, resnext, densenet, mobilenet], lambda make: make in (resnet, densenet)))
def test_planted_channels_go_and_nothing_else_changes(make):
    model = make()
    perturb(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    x = image(size=32)
    net = morphogen.trace(model, x)
    target = some(net)
    take_steps(model, optimizer, x)
    plant_sparse(net, target, value=0.9 * LIMIT)
    assert sparse_part(net, LIMIT) == target
    plant_sparse(net, target)
    ema = copy.deepcopy(model)
    perturb(ema)
    before, average = snapshot(model, optimizer), snapshot(ema)
    model.eval()
    with torch.no_grad():
        output, masked = model(x), morphogen.masked_dense(net, target)(x)
        morphogen.morph(net, sparse_part(net, LIMIT), optimizer=optimizer, ema=ema)
        assert net.current == target
        for expected in (output, masked):
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert_survivors_equal(net, before, net.dense, target, snapshot(model, optimizer))
    assert_survivors_equal(net, average, net.dense, target, snapshot(ema))
    assert_optimizer_holds_model(model, optimizer)
    assert {n: p.shape for n, p in ema.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    take_steps(model, optimizer, x)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("name", PER_CHANNEL)
def test_small_nets_equal_the_masked_dense_network(name, optimizer):
    model = NETS[name]().double()
    perturb(model)
    optimizer = optimizer(model.parameters(), 1e-3)
    net = morphogen.trace(model, image().double())
    take_steps(model, optimizer, image().double())
    target = some(net)
    plant_sparse(net, target)
    assert sparse_part(net, LIMIT) == target
    assert_equals_masked_dense(net, target, image().double(), tolerance=1e-12)


def test_the_mlps_and_heads_of_a_vision_transformer():
    """All but the stream, whose layer norms see what is left of it."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=12, depth=3, num_heads=2)
    perturb(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x = image(size=16)
    net = morphogen.trace(model, x)
    take_steps(model, optimizer, x)
    target = some(net, groups=[group for group in net.groups if "mlp" in group.name or "num_heads" in group.name])
    plant_sparse(net, target)
    before = snapshot(model, optimizer)
    model.eval()
    with torch.no_grad():
        output = model(x)
        assert sparse_part(net, LIMIT) == target
        morphogen.morph(net, target, optimizer=optimizer)
        torch.testing.assert_close(model(x), output, rtol=1e-5, atol=1e-5)
    assert_survivors_equal(net, before, net.dense, target, snapshot(model, optimizer))
    take_steps(model, optimizer, x)


def planted(make, **alive):
    """A net all of whose other channels are far from sparse."""
    net = morphogen.trace(make(), image())
    with torch.no_grad():
        for parameter in net.model.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    plant_sparse(net, net.subnetwork(alive=alive))
    return net


def test_the_threshold_is_on_the_largest_absolute_weight():
    net = planted(Residual, conv1=[0, 1, 2])
    with torch.no_grad():
        net.model.conv1.weight[4, 2, 1, 1] = -1.0  # the released code compares signed values
        net.model.conv2.weight[3, 5, 0, 0] = 1.01 * LIMIT
        net.model.conv2.weight[3, 6, 0, 0] = -0.99 * LIMIT
    assert sparse_part(net, LIMIT).channels["conv1"] == (0, 1, 2, 4, 5)


def test_a_channel_whose_weights_are_all_negative_stays():
    net = planted(Residual)
    with torch.no_grad():
        net.model.conv1.weight[2] = net.model.conv2.weight[:, 2] = -1.0
    assert sparse_part(net, LIMIT) == net.dense


@pytest.mark.parametrize("user", ["stem", "conv1", "conv2", "fc"])
def test_a_channel_in_use_by_one_layer_of_its_group_stays(user):
    """The stream of a residual net is written by two layers and read by two."""
    net = planted(Residual, stem=range(5))
    with torch.no_grad():
        weight = net.model.get_submodule(user).weight
        weight.select(0 if user in ("stem", "conv2") else 1, 6).fill_(0.1)
    assert sparse_part(net, LIMIT).channels["stem"] == (0, 1, 2, 3, 4, 6)


def test_a_group_without_a_channel_in_use_keeps_the_strongest():
    net = planted(Residual, conv1=[0])
    with torch.no_grad():
        net.model.conv1.weight[0] = net.model.conv2.weight[:, 0] = 0
        net.model.conv2.weight[1, 7] = -0.5 * LIMIT
    with pytest.warns(UserWarning, match="all channels of conv1 are sparse; the strongest is kept. A smaller penalty"):
        assert sparse_part(net, LIMIT).channels["conv1"] == (7,)


@pytest.mark.parametrize("multiple, kept", [(1, 3), (2, 4), (4, 4), (5, 5), (8, 8), (16, 12)])
def test_multiples_keep_the_strongest_of_those_about_to_go(multiple, kept):
    net = planted(Residual, conv1=[1, 5, 8])
    order = [1, 5, 8, 11, 10, 9, 7, 6, 4, 3, 2, 0]
    with torch.no_grad():
        for i, unit in enumerate(order[3:]):
            net.model.conv2.weight[0, unit] = -0.9 * LIMIT * 0.5**i
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        left = sparse_part(net, LIMIT, multiple)
    assert left.channels["conv1"] == tuple(sorted(order[:kept]))


def test_multiples_count_channels_where_a_unit_is_several():
    net = planted(NETS["Grouped"], widen=[0])  # units of four channels
    assert len(sparse_part(net, LIMIT, 4).channels["widen"]) == 1
    assert len(sparse_part(net, LIMIT, 8).channels["widen"]) == 2
    assert len(sparse_part(net, LIMIT, 12).channels["widen"]) == 3


@pytest.mark.parametrize("make", [Residual, Tower, Plain, resnet])
def test_weights_that_are_nan_never_go(make):
    net = morphogen.trace(make(), image(size=32 if make is resnet else 8))
    with torch.no_grad():
        for parameter in net.model.parameters():
            parameter.fill_(float("nan"))
    assert sparse_part(net, LIMIT) == net.dense


def test_one_nan_is_in_use():
    net = planted(Residual, conv1=[0, 3])
    with torch.no_grad():
        net.model.conv1.weight[5, 1, 1, 1] = float("nan")
    assert sparse_part(net, LIMIT).channels["conv1"] == (0, 3, 5)
    net = planted(Tower)
    with torch.no_grad():
        net.model.blocks[1].conv.weight.zero_()[0, 0, 0, 0] = float("nan")
        net.model.blocks[2].conv.weight.zero_()
    assert sparse_part(net, LIMIT).blocks["blocks"] == (0, 1, 3)


def test_the_next_part_is_of_the_present_one():
    """Positions are the dense network's, whatever has gone before."""
    net = planted(Concat)
    morphogen.morph(net, net.subnetwork(alive={"left": [1, 3, 5, 7], "join": range(2, 16)}))
    with torch.no_grad():
        net.model.left.weight[1] = net.model.join.weight[:, 1] = 0  # dense channel 3
        net.model.right.weight[2] = net.model.join.weight[:, 4 + 2] = 0
    left = sparse_part(net, LIMIT)
    assert left.channels["left"] == (1, 5, 7) and left.channels["right"] == (0, 1, 3)
    assert left.channels["join"] == tuple(range(2, 16))


# Blocks


def empty(model, *names):
    with torch.no_grad():
        for name in names:
            model.get_parameter(f"{name}.weight").fill_(0.5 * LIMIT)


@pytest.mark.parametrize("which", ["conv1", "conv2"])
def test_a_block_with_an_empty_convolution_goes_whole(which):
    model, x = resnet(), image(size=32)
    net = morphogen.trace(model, x)
    empty(model, f"layer2.2.{which}")
    left = sparse_part(net, LIMIT)
    assert left.blocks == {"layer2.1..2": (0,)} and left.channels == net.dense.channels
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.layer2[2].bn2.bias.data.zero_()
    nn.init.zeros_(model.get_parameter(f"layer2.2.{which}.weight"))
    model.eval()
    with torch.no_grad():
        before = model(x)
        morphogen.morph(net, left, optimizer=optimizer)
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert_optimizer_holds_model(model, optimizer)


def test_the_layers_of_a_block_that_goes_do_not_keep_channels():
    model = resnet()
    net = morphogen.trace(model, image(size=32))
    target = net.subnetwork(alive={"layer2.0.conv2": range(3, 128)})
    plant_sparse(net, target)
    with torch.no_grad():
        model.layer2[1].conv1.weight[:, 0] = 1.0  # in use by this block alone
        model.layer2[2].conv1.weight[:, 1] = 1.0
    empty(model, "layer2.1.conv2")
    left = sparse_part(net, LIMIT)
    assert left.blocks["layer2.1..2"] == (1,)
    assert left.channels["layer2.0.conv2"] == (1, *range(3, 128))
    assert left.channels["layer2.1.conv1"] == net.dense.channels["layer2.1.conv1"]  # comes and goes with its block


def test_of_a_stack_the_strongest_block_stays():
    model = Tower()
    net = morphogen.trace(model, image())
    empty(model, *(f"blocks.{i}.conv" for i in range(4)))
    model.blocks[2].conv.weight.data[0, 0, 0, 0] = -0.9 * LIMIT
    with pytest.warns(UserWarning, match=r"all blocks of the stack blocks are sparse; blocks.2 is kept"):
        left = sparse_part(net, LIMIT)
    assert left.blocks["blocks"] == (2,)
    morphogen.morph(net, net.subnetwork(blocks={"blocks": [1]}))
    with pytest.warns(UserWarning, match=r"blocks.1 is kept"):
        assert sparse_part(net, LIMIT).blocks["blocks"] == (1,)


def test_a_gate_is_no_bottleneck():
    """An empty squeeze-and-excitation makes the gate a constant, not the branch."""
    model = timm.create_model("seresnet50", layers=(1, 3, 1, 1), channels=(8, 8, 8, 8), num_classes=10)
    net = morphogen.trace(model, image(size=64))
    (stack,) = net.stacks
    assert stack.units == (("layer2.1",), ("layer2.2",))
    empty(model, "layer2.1.se.fc1", "layer2.1.se.fc2")
    with pytest.warns(UserWarning, match=r"all channels of layer2.1.se.fc1 are sparse"):
        assert sparse_part(net, LIMIT).blocks[stack.name] == (0, 1)
    empty(model, "layer2.1.conv2")
    assert sparse_part(net, LIMIT).blocks[stack.name] == (1,)


@pytest.mark.parametrize("attention", ["qkv", "proj"])
def test_a_transformer_block_goes_when_both_of_its_branches_are_empty(attention):
    model, size = small("deit_tiny_patch16_224", depth=3)
    perturb(model)
    net = morphogen.trace(model, image(size=size))
    empty(model, f"blocks.0.attn.{attention}", "blocks.1.mlp.fc2")
    assert sparse_part(net, LIMIT).blocks["blocks"] == (0, 1, 2)
    empty(model, f"blocks.1.attn.{attention}")
    assert sparse_part(net, LIMIT).blocks["blocks"] == (0, 2)


class Fixed(nn.Module):
    """Blocks on the image's own channels."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(self.Block() for _ in range(3)))
        self.fc = nn.Linear(3, 2)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return x + self.conv(x)

    def forward(self, x):
        return self.fc(self.blocks(x).mean((2, 3)))


def test_a_block_whose_channels_are_fixed_is_judged_by_its_weights():
    model = Fixed()
    net = morphogen.trace(model, image())
    assert not net.groups and net.stacks[0].bottlenecks
    empty(model, "blocks.1.conv")
    assert sparse_part(net, LIMIT).blocks["blocks"] == (0, 2)


# Any pattern


class Both(nn.Module):
    """A residual block and a concatenation, with normalisation and biases."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv1 = nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 4, 1)
        self.side = nn.Conv2d(3, 3, 1)
        self.fc = nn.Linear((4 + 3) * 4, 2)

    def forward(self, x):
        y = torch.relu(self.stem(x))
        y = y + self.conv2(torch.relu(self.norm(self.conv1(y))))
        return self.fc(torch.cat([y, torch.relu(self.side(x))], 1).flatten(1))


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    model = Both().double()
    perturb(model)
    return morphogen.trace(model, image(size=2).double()), copy.deepcopy(model.state_dict())


MEMBERS = {
    "stem": [("stem", 0, 1), ("conv1", 1, 1), ("conv2", 0, 1), ("fc", 1, 4)],
    "conv1": [("conv1", 0, 1), ("conv2", 1, 1)],
    "side": [("side", 0, 1), ("fc", 1, 4)],
}
"""By group: weight, axis, and how many neighbouring positions make a channel; `side` comes behind in `fc`."""

SIZES = {"stem": 4, "conv1": 3, "side": 3}


@settings(
    max_examples=settings().max_examples // 7,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    sparse=st.fixed_dictionaries(
        {
            name: st.lists(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)), min_size=n, max_size=n)
            for (name, rows), n in zip(MEMBERS.items(), SIZES.values(), strict=True)
        }
    )
)
def test_any_pattern_goes_by_the_union_and_equals_the_masked_network(both, sparse):
    net, state = both
    morphogen.morph(net, net.dense)
    net.model.load_state_dict(state)
    with torch.no_grad():
        for name, rows in MEMBERS.items():
            for unit, flags in enumerate(sparse[name]):
                for (layer, dim, run), flag in zip(rows, flags, strict=True):
                    if flag:
                        start = unit * run + (16 if (name, layer) == ("side", "fc") else 0)
                        net.model.get_submodule(layer).weight.narrow(dim, start, run).zero_()
    # What overlaps is sparse too: look at the weights, one by one.
    expected = {}
    for name, rows in MEMBERS.items():
        strength = []
        for unit in range(SIZES[name]):
            entries = [0.0]
            for layer, dim, run in rows:
                start = unit * run + (16 if (name, layer) == ("side", "fc") else 0)
                entries += net.model.get_submodule(layer).weight.narrow(dim, start, run).abs().flatten().tolist()
            strength.append(max(entries))
        kept = [unit for unit, most in enumerate(strength) if most >= LIMIT]
        expected[name] = tuple(kept or [strength.index(max(strength))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left = sparse_part(net, LIMIT)
    assert dict(left.channels) == expected
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    net.model.eval()
    with torch.no_grad():
        before = net.model(x)
    assert_equals_masked_dense(net, left, x, tolerance=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(net.model(x), before, rtol=1e-12, atol=1e-12)

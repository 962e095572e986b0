"""Growth by copying: what it preserves, by hand-computed numbers, in networks of all kinds, and in what follows."""

import copy
from itertools import product

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel

import morphogen
from morphogen.methods import build_method
from morphogen.morph.growth import OPERATORS
from morphogen.report.outcome import saved_schedule
from morphogen.run.assembly import Assembly

from checks import assert_function_preserved, perturb, snapshot, take_steps
from nets import NETS, PER_CHANNEL, Plain, Residual, Tower, deit, image
from nightly import often

COPYING = ["net2net", "fpi"]


class Mlp(nn.Module):
    """Residual blocks as in a transformer, without attention."""

    def __init__(self, width=8, hidden=12, depth=3, norm=nn.LayerNorm):
        super().__init__()
        self.stem = nn.Linear(5, width)
        self.blocks = nn.ModuleList(MlpBlock(width, hidden, norm) for _ in range(depth))
        self.norm = norm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class MlpBlock(nn.Module):
    def __init__(self, width, hidden, norm):
        super().__init__()
        self.norm = norm(width)
        self.read = nn.Linear(width, hidden)
        self.write = nn.Linear(hidden, width)

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x + self.write(torch.nn.functional.gelu(self.read(self.norm(x))))


def halved(model, x, width=0.5, exclude=()):
    """The network at a share of its width, with weights and statistics as after training."""
    perturb(model)
    net = morphogen.trace(model, x, exclude=exclude)
    morphogen.morph(net, net.subnetwork(width=width))
    return net


def two_layers():
    """2 of 5 hidden units: y = 6 relu(x + 1/2) + 10 relu(2 x - 1/2) + 1."""
    model = nn.Sequential(nn.Linear(1, 5), nn.ReLU(), nn.Linear(5, 1))
    net = morphogen.trace(model, torch.zeros(1, 1))
    morphogen.morph(net, net.subnetwork(alive={"0": [0, 1]}))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0]]))
        model[0].bias.copy_(torch.tensor([0.5, -0.5]))
        model[2].weight.copy_(torch.tensor([[6.0, 10.0]]))
        model[2].bias.fill_(1.0)
    return net


@pytest.mark.parametrize("operator", COPYING)
def test_hand_computed(operator):
    net = two_layers()
    assert net.model(torch.tensor([[2.0]])).item() == 6 * 2.5 + 10 * 3.5 + 1
    morphogen.morph(net, net.dense, operator=operator)
    assert net.model[0].weight.flatten().tolist() == [1, 2, 1, 2, 1]
    assert net.model[0].bias.tolist() == [0.5, -0.5, 0.5, -0.5, 0.5]
    assert net.model[2].weight.flatten().tolist() == [2, 5, 2, 5, 2]  # 6 in three parts, 10 in two
    assert net.model[2].bias.item() == 1
    assert net.model(torch.tensor([[2.0]])).item() == 51


def test_hand_computed_in_a_model_that_loses_channels_as_it_gains_others():
    """From units 0, 1 to 1, 2, 3, 4: unit 2 and 4 copy unit 0, which goes; 3 copies 1."""
    net = two_layers()
    morphogen.morph(net, net.subnetwork(alive={"0": [1, 2, 3, 4]}), operator="net2net")
    assert net.model[0].weight.flatten().tolist() == [2, 1, 2, 1]
    assert net.model[2].weight.flatten().tolist() == [5, 3, 5, 3]
    assert net.model(torch.tensor([[2.0]])).item() == 51


@pytest.mark.parametrize(
    ("name", "width", "operator"),
    often(
        product(PER_CHANNEL, (0.25, 0.4, 0.5, 0.75), COPYING),
        lambda case: case[1] == 0.4 or case[1:] == (0.25, "net2net"),
    ),
)
def test_any_ratio_is_exact_channel_by_channel(name, width, operator):
    """Batch norm, residual sums, concatenation, depthwise and grouped convolutions, gates, flattened space."""
    x = image().double()
    net = halved(NETS[name]().double(), x, width)
    assert_function_preserved(net, net.dense, x, operator)


def test_in_stages():
    x = image().double()
    net = halved(Residual().double(), x, 0.3)
    for share in (0.5, 0.7, 1.0):
        assert_function_preserved(net, net.subnetwork(width=share), x, "net2net")


class Vgg(nn.Sequential):
    def __init__(self):
        super().__init__(
            *[nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)],
            *[nn.Conv2d(12, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.MaxPool2d(2)],
            *[nn.Flatten(), nn.Linear(20 * 64, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 10)],
        )


MODELS = {
    "vgg": Vgg,
    "resnet": lambda: timm.create_model("resnet10t", num_classes=10),
    "mobilenet": lambda: torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=10),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 12, num_classes=10),
    "regnet": lambda: timm.create_model("regnety_002", num_classes=10),
}


AT_NIGHT = "mobilenet", "regnet"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly if name in AT_NIGHT else []) for name in MODELS]
)
def test_networks_of_all_kinds(name):
    x = image(size=32).double()
    net = halved(MODELS[name]().double(), x)
    assert_function_preserved(net, net.subnetwork(width=0.75), x, "net2net", tolerance=1e-8)
    assert_function_preserved(net, net.dense, x, "net2net", tolerance=1e-8)


def test_batch_statistics_of_copies_are_equal_so_training_mode_is_exact_too():
    x = image(8).double()
    net = halved(Residual().double(), x)
    before = net.model.train()(x)
    morphogen.morph(net, net.dense, operator="net2net")
    torch.testing.assert_close(net.model(x), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("operator", COPYING)
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_layer_norm_and_means_over_channels_are_exact_where_the_ratio_is_whole(norm, operator):
    x = torch.randn(4, 5).double()
    for width in (0.5, 0.25):
        net = halved(Mlp(norm=norm).double(), x, width)
        assert_function_preserved(net, net.dense, x, operator)
    net = halved(Mlp(norm=norm).double(), x, 0.5)
    with pytest.raises(AssertionError):
        assert_function_preserved(net, net.subnetwork(width=0.75), x, operator)


def test_group_norm_and_layer_norm_over_space_are_exact_where_the_ratio_is_whole():
    x = image().double()
    assert_function_preserved(net := halved(NETS["Mixed"]().double(), x), net.dense, x, "net2net")


def test_units_that_enter_are_copies_in_turn_wherever_they_stand():
    """Two of the units between those that enter stay out; the copies are counted by what enters."""
    x = torch.randn(4, 5).double()
    net = halved(Mlp().double(), x)
    name = net.groups[0].name
    morphogen.morph(net, net.subnetwork(alive={name: [1, 4]}))
    assert_function_preserved(net, net.subnetwork(alive={name: [1, 2, 4, 7]}), x, "net2net")


def test_the_mlps_of_a_vision_transformer():
    model, x = deit(depth=2).double(), image(size=16).double()
    net = halved(model, x, 0.3, exclude=["blocks.0.attn", "blocks.1.attn"])
    assert model.blocks[0].mlp.fc1.out_features == 14
    assert_function_preserved(net, net.dense, x, "fpi")


def test_whole_vision_transformers():
    """Stream, heads and MLPs, each doubled: layer norms see every channel twice."""
    model = deit(depth=2, num_heads=2, embed_dim=32).double()
    perturb(model)
    net = morphogen.trace(model, image(size=16).double())
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.blocks[0].attn.num_heads == 1 and model.embed_dim == 32  # what the forward pass does not read stays
    assert_function_preserved(net, net.dense, image(size=16).double(), "fpi")


def test_pytorchs_encoders():
    layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(6, 24), encoder, nn.Linear(24, 3)).double()
    perturb(model)
    net = morphogen.trace(model, torch.randn(2, 5, 6).double())
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert_function_preserved(net, net.dense, torch.randn(2, 5, 6).double(), "fpi")


def test_operators_that_are_not_declared_to_rescale_must_keep_what_was_alive():
    net = two_layers()
    before = snapshot(net.model)
    with pytest.raises(morphogen.MorphError, match=r"2\.weight: the growth operator changed what was alive.*carry"):
        morphogen.morph(net, net.dense, operator=lambda gap: gap.map.divide(gap.old))
    assert all(torch.equal(before[key], value) for key, value in snapshot(net.model).items())


def test_operators_that_are_must_divide_and_nothing_else():
    def same(gap):
        return gap.map.select(gap.old)

    def too_much(gap):
        return gap.map.divide(gap.old) / 2

    try:
        for fill in (same, too_much):
            morphogen.operator("planted", rescales=True)(fill)
            for operator in ("planted", fill):
                with pytest.raises(morphogen.MorphError, match=r"changed what was alive.*divide"):
                    morphogen.morph(net := two_layers(), net.dense, operator=operator)
    finally:
        OPERATORS.pop("planted", None)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_noise_lets_copies_part_company(noise):
    """Without it, and without momentum or dropout, two copies have equal gradients for ever."""
    net = halved(Plain(), image())
    before = snapshot(net.model)
    morphogen.morph(net, net.dense, operator=f"net2net(noise={noise})")
    conv = net.model.conv2.weight.detach()
    assert torch.equal(conv[:8, :4], before["conv2.weight"] / 2)
    added = conv[8:] - conv[:8]
    assert added.std().item() == pytest.approx(noise * before["conv2.weight"].std().item(), rel=0.1)
    assert torch.equal(net.model.conv2.bias[8:], net.model.conv2.bias[:8])
    assert torch.equal(net.model.bn1.running_var[4:], net.model.bn1.running_var[:4])
    optimizer = torch.optim.SGD(net.model.parameters(), 0.01)
    take_steps(net.model, optimizer, image(), steps=3)
    assert torch.allclose(net.model.conv2.weight[8:], net.model.conv2.weight[:8], atol=1e-6) == (noise == 0)


def test_noise_can_be_repeated():
    def grown():
        torch.manual_seed(3)
        net = halved(Plain(), image())
        generator = torch.Generator().manual_seed(5)
        morphogen.morph(net, net.dense, operator="net2net(noise=0.1)", generator=generator)
        return snapshot(net.model)

    first, second = grown(), grown()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_moments_and_gradients_are_carried_as_they_are():
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters())
    net = halved(model, image())
    take_steps(model, optimizer, image())
    before = snapshot(model, optimizer)
    morphogen.morph(net, net.dense, optimizer=optimizer, operator="net2net")
    after = snapshot(model, optimizer)
    assert torch.equal(after["conv2.weight"][:4, :6], before["conv2.weight"] / 2)
    squares = "conv2.weight/exp_avg_sq"
    for key in ("conv2.weight/exp_avg", squares, "conv2.weight/grad"):
        assert torch.equal(after[key][:4, :6], before[key]), key
        new = before[key].mean() if key == squares else 0
        assert after[key][4:].eq(new).all() and after[key][:, 6:].eq(new).all(), key
    take_steps(model, optimizer, image())


def test_the_gradient_of_a_weight_that_reads_a_copy_is_what_it_was():
    """Why its moments are carried undivided."""
    x = image().double()
    net = halved(Plain().double(), x)
    net.model.eval()(x).square().sum().backward()
    before = net.model.fc.weight.grad.clone()
    net.model.zero_grad()
    morphogen.morph(net, net.dense, operator="net2net")
    net.model(x).square().sum().backward()
    for part in net.model.fc.weight.grad.view(10, 2, -1).unbind(1):
        torch.testing.assert_close(part, before)


def test_an_average_in_the_optimizer_begins_anew():
    net = halved(Residual(), image())
    optimizer = torch.optim.ASGD(net.model.parameters(), 0.01)
    take_steps(net.model, optimizer, image())
    morphogen.morph(net, net.dense, optimizer=optimizer, operator="net2net")
    for parameter in (net.model.conv1.weight, net.model.conv2.weight):
        average = optimizer.state[parameter]["ax"]
        assert torch.equal(average, parameter) and average.data_ptr() != parameter.data_ptr()


@pytest.mark.parametrize("operator", ["net2net", "net2net(noise=0.1)"])
@pytest.mark.parametrize("kind", ["averaged", "copy"])
def test_averaged_copies_grow_by_the_same_rule(kind, operator):
    x = image().double()
    net = halved(Residual().double(), x)
    ema = AveragedModel(net.model) if kind == "averaged" else copy.deepcopy(net.model)
    perturb(ema)  # other weights than the model's
    ema.eval()
    before = ema(x)
    morphogen.morph(net, net.dense, ema=ema, operator=operator)
    torch.testing.assert_close(ema(x), before, rtol=1e-10, atol=1e-10)


def test_an_averaged_copy_has_no_say_in_the_random_numbers():
    def grown(with_ema):
        torch.manual_seed(3)
        net = halved(Plain(), image())
        ema = copy.deepcopy(net.model) if with_ema else None
        morphogen.morph(net, net.dense, ema=ema, operator="net2net(noise=0.1)")
        return [*snapshot(net.model).values(), torch.randn(1)]

    assert all(torch.equal(left, right) for left, right in zip(grown(True), grown(False), strict=True))


def test_new_blocks_of_a_widened_stack_come_from_the_widened_average():
    net = halved(Tower().double(), image().double())
    alive = net.subnetwork(width=0.5, depth=0.5)
    morphogen.morph(net, alive)
    momentum = morphogen.MomentumNetwork(net.model, decay=0.5)
    perturb(momentum.module)
    old = momentum.module.blocks[0].conv.weight.detach().clone()
    morphogen.morph(net, net.dense, operator="net2net", depth_operator="momentum", momentum=momentum)
    entered = net.model.blocks[1].conv.weight
    torch.testing.assert_close(entered, old.repeat(2, 2, 1, 1) / 2)


def test_layout_and_dtype_survive():
    model = Residual().to(torch.bfloat16).to(memory_format=torch.channels_last)
    x = image().to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    net = halved(model, x)
    morphogen.morph(net, net.dense, operator="net2net(noise=0.1)")
    for parameter in model.parameters():
        assert parameter.dtype == torch.bfloat16
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def numbered_mlp():
    """Hidden width 2 of 4 in three blocks; everything in block i is i + 1."""
    model = Mlp(hidden=4)
    net = morphogen.trace(model, torch.zeros(1, 5))
    groups = {group.name: [0, 1] for group in net.groups if group.size == 4}
    assert len(groups) == 3
    morphogen.morph(net, net.subnetwork(alive=groups))
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            for parameter in block.parameters():
                parameter.fill_(i + 1)
    return net


def test_bert2bert_takes_new_neurons_from_the_next_block():
    net = numbered_mlp()
    morphogen.morph(net, net.dense, operator="bert2bert")
    for i, block in enumerate(net.model.blocks):
        upper = min(i + 1, 2)  # the last has none above: its own
        assert block.read.weight[:, 0].tolist() == [i + 1, i + 1, upper + 1, upper + 1]
        assert block.read.bias.tolist() == [i + 1, i + 1, upper + 1, upper + 1]
        assert block.write.weight[0].tolist() == [(i + 1) / 2] * 4  # reads its own neurons and their copies' places
        assert block.norm.weight.tolist() == [i + 1] * 8


def test_bert2bert_skips_blocks_that_are_out():
    net = numbered_mlp()
    groups = net.current.channels
    morphogen.morph(net, net.subnetwork(alive=groups, blocks={"blocks": [0, 2]}))
    morphogen.morph(net, net.subnetwork(blocks={"blocks": [0, 2]}), operator="bert2bert")
    assert net.model.blocks[0].read.bias.tolist() == [1, 1, 3, 3]


def test_bert2bert_takes_nothing_from_a_block_that_leaves():
    net = numbered_mlp()
    ema = copy.deepcopy(net.model)
    morphogen.morph(net, net.subnetwork(blocks={"blocks": [0, 2]}), ema=ema, operator="bert2bert")
    for model in (net.model, ema):
        assert model.blocks[0].read.bias.tolist() == [1, 1, 3, 3]


def test_bert2bert_grows_an_averaged_copy_by_its_own_next_block():
    net = numbered_mlp()
    ema = copy.deepcopy(net.model)
    with torch.no_grad():
        for parameter in ema.parameters():
            parameter.mul_(10)
    morphogen.morph(net, net.dense, ema=ema, operator="bert2bert")
    assert ema.blocks[0].read.bias.tolist() == [10, 10, 20, 20]
    assert ema.blocks[0].write.weight[0].tolist() == [5] * 4


def test_bert2bert_grows_by_its_own_neurons_next_to_a_block_of_another_size():
    net = numbered_mlp()
    names = [group.name for group in net.groups if group.size == 4]
    morphogen.morph(net, net.subnetwork(alive={names[0]: [0, 1], names[1]: [0], names[2]: [0]}))
    morphogen.morph(net, net.subnetwork(alive={names[1]: [0], names[2]: [0]}), operator="bert2bert")
    assert net.model.blocks[0].read.bias.tolist() == [1, 1, 1, 1]


def test_methods_say_their_operator_so_that_a_schedule_can_be_followed_again():
    assert Assembly(morphogen.Net2Net()).operator == "net2net(noise=0.01)"
    assert Assembly(build_method("Net2Net(noise=0)")).operator == "net2net"
    assert morphogen.Bert2BERT().depth_operator == "stack"
    assert Assembly(morphogen.Bert2BERT(depth=0.5)).depth_operator == "stack"
    model = Tower()
    run = morphogen.attach(
        model, torch.optim.SGD(model.parameters(), 0.1), morphogen.Net2Net(), example=image(), epochs=2, start_epoch=0
    )
    schedule = saved_schedule(run)
    assert schedule is not None and schedule.settings["operator"] == "net2net(noise=0.01)"
    build_method("NetworkExpansion(operator='net2net(noise=0.1)')")


def test_settings_an_operator_does_not_have_are_refused():
    with pytest.raises(morphogen.MorphError, match=r"net2net has no setting 'loudness'; expected one of noise"):
        morphogen.NetworkExpansion(operator="net2net(loudness=1)")
    with pytest.raises(morphogen.MorphError, match=r"random has no setting 'noise'; expected none"):
        morphogen.NetworkExpansion(operator="random(noise=1)")

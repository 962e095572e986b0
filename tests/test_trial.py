"""Nothing is silently wrong: code that does not follow a morph is pinned, or refused with the model untouched."""

import threading

import pytest
import torch
from timm.layers import ScaledStdConv2d
from torch import nn
from torch.nn import functional as F

import morphogen

from checks import assert_equals_masked_dense, snapshot
from nets import Plain, Residual, image


class Net(nn.Module):
    """conv (16 or `channels`) - `middle` - conv - mean - linear; `middle` is what a test is about."""

    def __init__(self, middle, channels=16):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 1)
        self.second = nn.Conv2d(channels, 6, 1)
        self.fc = nn.Linear(6, 5)
        self.middle = middle
        self.parameter = nn.Parameter(torch.rand(channels, 1, 1))
        self.weight, self.bias = nn.Parameter(torch.rand(channels)), nn.Parameter(torch.rand(channels))

    def forward(self, x):
        return self.fc(self.second(self.middle(self, self.first(x))).mean((2, 3)))


def branch_on_width(net, x):
    return torch.relu(x) if x.shape[1] > 8 else x


def scaled_by_width(net, x):
    return x * x.shape[1] ** -0.5


def test_a_scale_that_is_the_root_of_a_width_follows_it():
    model = Net(scaled_by_width)
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    x = image()
    found = model.fc(model.second(model.first(x) * 8**-0.5).mean((2, 3)))
    assert torch.allclose(model(x), found)


def test_code_that_does_not_follow_is_refused():
    model, message = Net(branch_on_width), "another path"
    net = morphogen.trace(model, image())
    before = snapshot(model)
    with pytest.raises(morphogen.MorphError, match=message):
        morphogen.morph(net, net.subnetwork(width=0.5))
    after = snapshot(model)
    assert net.current == net.dense and all(torch.equal(before[name], after[name]) for name in before)


def convolve_channels(net, x):
    return x * F.conv1d(x.mean((2, 3))[:, None], torch.ones(1, 1, 3), padding=1)[:, 0, :, None, None]


def average_channels(net, x):
    return x * F.avg_pool1d(x.mean((2, 3))[:, None], 3, 1, 1)[:, 0, :, None, None]


def pool_channels(net, x):
    pooled = F.max_pool1d(x.flatten(2).transpose(1, 2), 3, 1, 1)
    return pooled.transpose(1, 2).view_as(x)


def shift_channels(net, x):
    return F.pad(x, (0, 0, 0, 0, 1, -1))


def roll_flat(net, x):
    return x.roll(1)


def index_as_value(net, x):
    return x * x.argmax(dim=1, keepdim=True)


def index_of_maximum(net, x):
    return x * x.max(dim=1, keepdim=True).indices


def training_noise(net, x):
    return x * torch.rand(16, 1, 1) if net.training else x


def functional_group_norm(net, x):
    return F.group_norm(x, 8, net.weight, net.bias)


def shuffle_by_width(net, x):
    return F.channel_shuffle(x, x.shape[1] // 4)


def group_norm_by_width(net, x):
    return F.group_norm(x, x.shape[1] // 4)


def divided_by_width(net, x):
    return x / x.shape[1]


PINNED = [
    functional_group_norm,
    shuffle_by_width,
    group_norm_by_width,
    divided_by_width,
    convolve_channels,
    average_channels,
    pool_channels,
    shift_channels,
    roll_flat,
    index_as_value,
    index_of_maximum,
    training_noise,
]


@pytest.mark.parametrize("middle", PINNED, ids=lambda f: f.__name__)
def test_order_and_position_pin_the_channels(middle):
    net = morphogen.trace(Net(middle), image())
    assert [group.name for group in net.groups] == ["second"]
    assert any(pin.axis == "first.weight[0]" and pin.reason for pin in net.pinned)


def clamped(net, x):
    return x.clamp(min=net.parameter)


def normalised(net, x):
    return x / x.norm(dim=(2, 3), keepdim=True).clamp_min(1e-6).expand_as(x)


def moved(net, x):
    return x.movedim(1, -1).movedim(-1, 1)


def gated(net, x):
    return F.glu(torch.cat([x, x], 1), 1)


def shuffled_by_four(net, x):
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)


def shuffle_written_in(net, x):
    n, c, h, w = x.shape
    return x.view(n, 8, c // 8, h, w).transpose(1, 2).reshape(n, c, h, w)


def shuffle_of_fours(net, x):
    n, c, h, w = x.shape
    return x.view(n, -1, 4, h, w).transpose(1, 2).reshape(n, c, h, w)


FOLLOW = [clamped, normalised, moved, gated, shuffled_by_four, shuffle_written_in, shuffle_of_fours]


@pytest.mark.parametrize("middle", FOLLOW, ids=lambda f: f.__name__)
def test_these_follow(middle):
    net = morphogen.trace(Net(middle), image())
    assert {group.name for group in net.groups} == {"first", "second"}
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), image())


def training_cut(net, x):
    return torch.cat([x[:, :4].detach(), x[:, 4:]], 1) if net.training else x


def test_positions_before_a_cut_stay():
    """Cut at position 4, in training alone: the first four stay, the others are free."""
    net = morphogen.trace(Net(training_cut), image())
    assert [group.name for group in net.groups] == ["first[4:16]", "second"]
    assert any(pin.axis == "first.weight[0]" and pin.size == 4 for pin in net.pinned)
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), image())


def test_weight_standardised_convolutions_grow_as_convolutions():
    model = nn.Sequential(
        ScaledStdConv2d(3, 16, 3, padding=1), nn.ReLU(), ScaledStdConv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.morph(net, net.dense)
    new = model[2].weight[8:, :8].flatten(1)
    old = model[2].weight[:8, :8].flatten(1)
    assert torch.linalg.matrix_rank(new) == 8 and (old @ new.T).abs().max() < 1e-5


def test_other_resolutions_are_no_way_around():
    net = morphogen.trace(Net(branch_on_width), image())
    half = net.subnetwork(width=0.5)
    for size in ((8, 8), (4, 4)):
        with pytest.raises(morphogen.MorphError):
            morphogen.morph(net, morphogen.SubNetwork(half.channels, {}, size))
    with pytest.raises(morphogen.SubNetworkError, match="resolution"):
        morphogen.morph(net, morphogen.SubNetwork(half.channels, {}, None))


class FlatWhenSmall(nn.Module):
    """Batch and channels are merged by a view at small resolutions alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1)

    def forward(self, x):
        y = self.conv(x).mean((2, 3)).relu()
        return y.sum(1) if x.shape[-1] > 4 else y.view(-1, 16).sum(1)


def test_sizes_written_in_for_another_resolution_are_found():
    net = morphogen.trace(FlatWhenSmall(), image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    with pytest.raises(morphogen.MorphError, match="output of another shape"):
        morphogen.morph(net, net.subnetwork(width=0.5, resolution=4))


@pytest.mark.parametrize("transposed", [False, True])
def test_square_matrices_used_directly_have_the_right_sides(transposed):
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 16, 1), nn.Linear(16, 5)
            self.matrix = nn.Parameter(torch.randn(16, 16))

        def forward(self, x):
            x = torch.relu(self.conv(x).mean((2, 3)))
            return self.fc(torch.relu(x @ (self.matrix.t() if transposed else self.matrix)))

    net = morphogen.trace(Direct(), image())
    role = net.structure.tensors["matrix"].role
    assert (role.kind, role.outs, role.ins) == ("weight", *(((0,), (1,)) if transposed else ((1,), (0,))))
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), image())


def test_resolution_is_tried_out():
    net = morphogen.trace(Residual(), image())
    morphogen.morph(net, net.subnetwork(width=0.5, resolution=4))
    assert net.current.resolution == (4, 4)
    flat = morphogen.trace(Plain(), image())
    with pytest.raises(morphogen.SubNetworkError, match=r"the resolution is below the least"):
        flat.subnetwork(resolution=6)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (lambda gap: torch.zeros(gap.map.new_shape), "changed what was alive"),
        (lambda gap: None, "unfit value"),
        (lambda gap: gap.map.carry(gap.old).double(), "unfit value"),
    ],
)
def test_operators_are_checked(operator, message):
    model = Plain()
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    before = snapshot(model)
    with pytest.raises(morphogen.MorphError, match=message):
        morphogen.morph(net, net.dense, operator=operator)
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot(model).items())


def test_states_that_cannot_follow_are_refused_before_anything_changes():
    class Ends(nn.Module):
        """Its first parameter never changes."""

        def __init__(self):
            super().__init__()
            self.pre, self.conv, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(self.conv(x + self.pre(x)).mean((2, 3)))

    model = Ends()
    lbfgs = torch.optim.LBFGS(model.parameters())
    x = image()

    def closure():
        lbfgs.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    lbfgs.step(closure)
    net = morphogen.trace(model, x)
    with pytest.raises(morphogen.MorphError, match="LBFGS"):
        morphogen.morph(net, net.subnetwork(width=0.5), optimizer=lbfgs)
    adam = torch.optim.Adam(model.parameters())
    adam.step()
    adam.state[model.fc.weight]["exp_avg"] = adam.state[model.fc.weight]["exp_avg"].to_sparse()
    with pytest.raises(morphogen.MorphError, match="exp_avg"):
        morphogen.morph(net, net.subnetwork(width=0.5), optimizer=adam)
    assert model.conv.weight.shape[0] == 8 and net.current == net.dense
    for wrong in (torch.optim.lr_scheduler.StepLR(adam, 1), [model], 3):
        with pytest.raises(morphogen.MorphError, match="optimizer is of the wrong kind"):
            morphogen.morph(net, net.subnetwork(width=0.5), optimizer=wrong)


def test_a_morph_in_inference_mode_leaves_trainable_weights():
    model = Residual()
    net = morphogen.trace(model, image())
    with torch.inference_mode():
        morphogen.morph(net, net.subnetwork(width=0.5))
        morphogen.morph(net, net.dense)
    model(image()).sum().backward()


def test_what_a_forward_pass_keeps_is_put_back():
    class Keeps(Plain):
        last = None

        def forward(self, x):
            self.last = x
            return super().forward(x)

    model = Keeps()
    morphogen.trace(model, image())
    assert model.last is None


def test_models_that_cannot_be_copied_are_refused():
    model = Plain()
    model.lock = threading.Lock()
    with pytest.raises(morphogen.TraceError, match="cannot be copied"):
        morphogen.trace(model, image())


def test_a_training_mode_that_cannot_be_read_is_said():
    class Random(Plain):
        def forward(self, x):
            if self.training and torch.rand(1).item() < 0.5:
                x = -x
            return super().forward(x)

    with pytest.warns(UserWarning, match="only the evaluation mode was read"):
        net = morphogen.trace(Random(), image())
    assert len(net.groups) == 2


@pytest.mark.parametrize(
    "arguments",
    [{"alive": {"conv1": [0.2, 1.7]}}, {"alive": {"conv1": 3}}, {"alive": {"conv1": "0:4"}}, {"multiple_of": 2.5},
     {"resolution": (8,)}, {"resolution": (4, 4, 4)}, {"resolution": 4.5}],
)  # fmt: skip
def test_odd_kinds_of_values_are_refused(arguments):
    net = morphogen.trace(Plain(), image())
    with pytest.raises(morphogen.SubNetworkError):
        net.subnetwork(**arguments)


def test_unknown_stacks_are_refused():
    net = morphogen.trace(Plain(), image())
    with pytest.raises(morphogen.SubNetworkError, match="layerX"):
        morphogen.morph(net, morphogen.SubNetwork(net.dense.channels, {"layerX": (0,)}, net.dense.resolution))

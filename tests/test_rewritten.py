"""Weights that are computed anew in each forward pass, by hooks or by parametrizations: weight norm, spectral norm."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import morphogen

from checks import assert_function_preserved

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm:FutureWarning")


class Block(nn.Module):
    """Two convolutions in a residual branch, as in a vocoder or a temporal convolutional network."""

    def __init__(self, put_on):
        super().__init__()
        self.first, self.second = put_on(nn.Conv1d(8, 12, 3, padding=1)), put_on(nn.Conv1d(12, 8, 3, padding=1))

    def forward(self, x):
        return x + self.second(self.first(x).relu())


def vocoder(put_on):
    torch.manual_seed(0)
    return nn.Sequential(put_on(nn.Conv1d(4, 8, 3)), Block(put_on), Block(put_on), put_on(nn.Conv1d(8, 2, 1)))


KINDS = {
    "weight norm": weight_norm,
    "along inputs": lambda module: weight_norm(module, dim=1),
    "spectral norm": spectral_norm,
    "weight norm of today": parametrizations.weight_norm,
    "spectral norm of today": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("kind", KINDS)
def test_channels_blocks_and_training(kind):
    model, x = vocoder(KINDS[kind]).double(), torch.randn(3, 4, 16).double()
    before, names = model.eval()(x), list(model.state_dict())
    net = morphogen.trace(model, x)
    assert torch.equal(model(x), before) and list(model.state_dict()) == names
    assert [group.size for group in net.groups] == [8, 12, 12] and net.stacks[0].size == 2
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    half = net.subnetwork(width=0.5, depth=0.5)
    morphogen.morph(net, half, optimizer=optimizer)
    assert model[1].first.weight.shape == (6, 4, 3)  # at once, not after the next forward pass alone
    model.train()(x).square().mean().backward()
    optimizer.step()
    morphogen.morph(net, net.dense, optimizer=optimizer)
    model.train()(x).square().mean().backward()
    optimizer.step()
    fresh = vocoder(KINDS[kind]).double()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh.eval()(x), model.eval()(x))


def test_quiet_growth_keeps_the_function():
    model, x = vocoder(weight_norm).double(), torch.randn(3, 4, 16).double()
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert_function_preserved(net, net.dense, x, "quiet", depth_operator="identity")


@pytest.mark.parametrize("put_on", [weight_norm, parametrizations.weight_norm])
def test_lengths_of_inputs_which_transposed_convolutions_have(put_on):
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), put_on(nn.ConvTranspose1d(8, 2, 4, 2))).double()
    x = torch.randn(3, 4, 16).double()
    net = morphogen.trace(model, x)
    for operator in ("quiet", "orthogonal", "random"):
        morphogen.morph(net, net.subnetwork(width=0.5))
        before = model(x)
        morphogen.morph(net, net.dense, operator=operator)
        assert model(x).isfinite().all()  # weights of no length would be divided by it
        if operator == "quiet":
            torch.testing.assert_close(model(x), before)


def test_an_average_follows_with_its_hooks():
    model, x = vocoder(weight_norm), torch.randn(3, 4, 16)
    with torch.no_grad():
        model(x)  # PyTorch copies no weights that have a history
    ema = torch.optim.swa_utils.AveragedModel(model)
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5), ema=ema)
    torch.testing.assert_close(ema.module.eval()(x), model.eval()(x))


def test_recurrent_layers_are_refused():
    with pytest.raises(morphogen.TraceError, match=r"0: a hook writes.*parametrizations.weight_norm"):
        morphogen.trace(nn.Sequential(weight_norm(nn.LSTM(4, 8), "weight_hh_l0")), torch.randn(3, 2, 4))


def test_lengths_of_outputs_learn_where_a_weight_is_square():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8) / 3)

        def forward(self, x):
            return x @ self.weight.t()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), parametrizations.weight_norm(Transposed()), nn.Linear(8, 3)).double()
    x = torch.randn(16, 6).double()
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.morph(net, net.dense)
    assert model[1].parametrizations.weight.original0.abs().min() > 0.1


def test_a_mask_of_inputs_is_no_length():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
            self.register_buffer("mask", torch.ones(1, 8, 1, 1))

        def forward(self, x):
            return nn.functional.conv2d(self.first(x), self.second.weight * self.mask)

    model, x = Masked().double(), torch.randn(2, 3, 4, 4).double()
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert_function_preserved(net, net.dense, x, "quiet")


@pytest.mark.parametrize("put_on", [spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_is_one_after_each_change(put_on):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), put_on(nn.Linear(32, 32)), nn.Linear(32, 3)).double()
    x = torch.randn(16, 6).double()
    for _ in range(20):
        model(x)
    net = morphogen.trace(model.eval(), x)
    for part in (net.subnetwork(width=0.5), net.dense):
        morphogen.morph(net, part)
        model(x)
        assert torch.linalg.matrix_norm(model[1].weight, 2).item() == pytest.approx(1, abs=0.1)

"""The zoo's checks find nothing wrong where nothing is, and each fails on a planted defect."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen

from checks import randomise_statistics
from nets import Residual, image

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "zoo"))
import correct


class Normed(nn.Module):
    """A residual block between layer norms, a group norm and a mean over channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.fc(x.mean((1, 2)))


def checked(model):
    correct.shake(model)
    net = morphogen.trace(model, image())
    return correct.check(net, net.subnetwork(width=0.5), image())


class Mixing(Normed):
    """Biases along the positions keep dropped channels from staying zero."""

    def __init__(self):
        super().__init__()
        self.along = nn.Linear(8, 8)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.norm((x + self.along(x)).permute(0, 2, 3, 1)).mean((1, 2)))


def spoil(monkeypatch, defect):
    """A morph that does something wrong whenever it narrows."""
    whole = morphogen.morph

    def morph(net, target, **options):
        receipt = whole(net, target, **options)
        if target != net.dense:
            with torch.no_grad():
                defect(net.model)
        return receipt

    monkeypatch.setattr(correct.morphogen, "morph", morph)


def test_the_strongest_check_that_applies_decides():
    verdict = checked(Residual())
    assert (verdict.check, verdict.found, verdict.across) == ("masked dense", {"masked dense": "equal"}, [])
    verdict = checked(Normed())
    assert verdict.check == "size-free" and "native_layer_norm" in verdict.across
    assert verdict.found["masked dense"].startswith("differs")
    assert verdict.found["size-free"] == "equal" and verdict.found["poison"] == "clean"


def test_where_dropped_channels_do_not_stay_zero_norms_look_at_each_value_alone():
    verdict = checked(Mixing())
    assert verdict.check == "elementwise" and verdict.found["size-free"].startswith("differs")


def test_masked_dense_notices_swapped_channels(monkeypatch):
    spoil(monkeypatch, lambda model: model.conv2.weight.copy_(model.conv2.weight.flip(1)))
    with pytest.raises(correct.Wrong, match="masked dense differs"):
        checked(Residual())


def test_size_free_notices_swapped_channels(monkeypatch):
    spoil(monkeypatch, lambda model: model.norm.weight.copy_(model.norm.weight.flip(0)))
    verdict = checked(Normed())
    assert all(verdict.found[way].startswith("differs") for way in ("size-free", "elementwise"))
    assert verdict.check == "poison"


@pytest.mark.parametrize(
    ("defect", "found"),
    [
        (lambda model: model.down.weight[0].fill_(torch.nan), "reached the output"),
        (lambda model: model.norm.weight.register_hook(torch.zeros_like), r"norm\.weight is kept and receives no"),
        (lambda model: model.norm.weight.register_hook(lambda grad: grad * torch.nan), "the gradient of norm.weight"),
    ],
)
def test_poison_notices_nan_and_lost_gradients(monkeypatch, defect, found):
    net = morphogen.trace(Normed(), image())
    spoil(monkeypatch, defect)
    with pytest.raises(correct.Wrong, match=found):
        correct.poison(net, net.subnetwork(width=0.5), image())


def test_a_check_that_masking_cannot_fail_says_so():
    model = Residual()
    randomise_statistics(model)
    with torch.no_grad():
        model.fc.weight.zero_()  # nothing before it reaches the output
    net = morphogen.trace(model, image())
    verdict = correct.check(net, net.subnetwork(width=0.5), image())
    assert verdict.found == {"masked dense": "equal, but masking changes nothing"}


def test_a_bias_that_a_softmax_takes_out_again_learns_nothing():
    class Attention(nn.Linear):
        def forward(self, x):
            return super().forward(x).softmax(0)

    torch.manual_seed(0)
    model = Attention(8, 4).double()
    correct._backward(model, torch.randn(16, 8, dtype=torch.double))
    assert model.bias.grad.any()  # of rounding
    assert correct._asleep(model) == {"bias"}

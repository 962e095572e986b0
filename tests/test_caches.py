"""What a forward pass leaves in the modules to use again is forgotten when sizes change."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen


class Slopes(nn.Module):
    """ALiBi's, a fixed slope for each head, computed once for each length."""

    def __init__(self, keep):
        super().__init__()
        self.keep, self.length, self.kept, self.table, self.calls = keep, None, None, {}, 0
        self.register_buffer("slopes", 2.0 ** -torch.arange(4.0), persistent=False)
        self.register_buffer("buffer", None, persistent=False)

    def forward(self, n):
        self.calls += 1
        if self.length != n:
            self.length, made = n, self.slopes[:, None, None] * (torch.arange(n)[:, None] - torch.arange(n)).abs()
            self.keep(self, n, made)
        if self.keep is in_a_dictionary:
            return self.table[n]
        return {as_a_buffer: self.buffer, as_another: getattr(self, "late", None)}.get(self.keep, self.kept)


def as_an_attribute(module, n, made):
    module.kept = made


def as_another(module, n, made):
    module.late = made


def as_a_buffer(module, n, made):
    module.buffer = made


def in_a_dictionary(module, n, made):
    module.table[n] = made


class Attention(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.heads, self.slopes, self.calls = 4, Slopes(keep), 0
        self.stem, self.qkv, self.out = nn.Linear(6, 16), nn.Linear(16, 48), nn.Linear(16, 3)

    def forward(self, x):
        self.calls += 1
        q, k, v = self.qkv(self.stem(x)).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.slopes(x.shape[1]))
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("keep", [as_an_attribute, as_another, as_a_buffer, in_a_dictionary])
def test_what_was_computed_for_some_heads_is_not_used_for_others(keep):
    model, x = Attention(keep), torch.randn(2, 5, 6)
    net = morphogen.trace(model, x)
    for heads in ([0, 1], [2, 3]):
        target = net.subnetwork(alive={"heads": heads})
        morphogen.morph(net, target, operator="random")
        found = model(x)
    assert model.calls == model.slopes.calls == 2  # what modules count stays, with a cache beside it and without
    same = Attention(keep)
    morphogen.morph(morphogen.trace(same, x), target)
    same.load_state_dict(model.state_dict())
    assert torch.equal(found, same(x))
    morphogen.morph(net, net.dense)
    dense = Attention(keep)
    dense.load_state_dict(model.state_dict())
    assert torch.equal(model(x), dense(x))


def test_copies_forget_too_and_a_refused_morph_forgets_nothing():
    model, x = Attention(as_an_attribute), torch.randn(2, 5, 6)
    net = morphogen.trace(model, x)
    average = torch.optim.swa_utils.AveragedModel(model)
    average(x), model(x)
    kept = model.slopes.kept
    with pytest.raises(morphogen.MorphError):
        morphogen.morph(net, net.subnetwork(width=0.5), operator="none such")
    assert model.slopes.kept is kept
    morphogen.morph(net, net.subnetwork(width=0.5), ema=average)
    assert average(x).shape == model(x).shape == (2, 5, 3)


def test_a_table_that_an_earlier_call_has_left_is_told():
    model = Attention(as_an_attribute)
    model(torch.randn(2, 7, 6))
    with pytest.warns(UserWarning, match="slopes.kept: an earlier call of the model has left it for other inputs"):
        morphogen.trace(model, torch.randn(2, 5, 6))
    model(torch.randn(2, 5, 6))
    net = morphogen.trace(model, torch.randn(2, 5, 6))  # this one follows
    model(torch.randn(2, 7, 6))
    with pytest.raises(morphogen.MorphError, match="traced before its first call"):
        morphogen.morph(net, net.subnetwork(width=0.5))


class Looks(nn.Module):
    """Keeps its last output to look at."""

    def __init__(self):
        super().__init__()
        self.stem, self.out, self.last = nn.Linear(6, 8), nn.Linear(8, 3), None

    def forward(self, x):
        self.last = self.stem(x)
        return self.out(self.last)


def test_what_every_call_writes_is_no_table(recwarn):
    model = Looks()
    model(torch.randn(3, 6))
    net = morphogen.trace(model, torch.randn(2, 6))
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model(torch.randn(3, 6)).shape == (3, 3) and model.last.shape == (3, 4) and not recwarn.list

"""Nets built like other people's: narrowed to half, trained, grown back, loaded; benchmarks/zoo has the real ones."""

import sys
from pathlib import Path

import pytest
import torch

import morphogen
from wild_nets import WILD

from checks import assert_optimizer_holds_model

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "zoo"))
from correct import call, check, shake, tensors_in
from untouched import difference, picture

SHARE = {"writer": 0.5, "flow": 0.5, "translator": 0.45, "pooling": 0.6, "experts": 0.55}
"""More than a third of the parameters stays at half width: small heads and embeddings of few words; what is compared;
groups that are multiplied with the batch."""


def built(name):
    torch.manual_seed(0)
    model, example = WILD[name]
    model = model()
    shake(model)
    return model, example()


@pytest.mark.parametrize("name", WILD)
def test_half_width_and_back(name):
    model, example = built(name)
    with torch.no_grad():
        call(model.eval(), example)  # what a forward pass leaves behind must not matter
    before, whole = picture(model), sum(p.numel() for p in model.parameters())
    net = morphogen.trace(model, example)
    assert not difference(before, picture(model))
    half = net.subnetwork(width=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    morphogen.morph(net, half, optimizer=optimizer)
    assert sum(p.numel() for p in model.parameters()) <= SHARE.get(name, 0.4) * whole
    model.train()
    torch.autograd.backward([tensor.square().mean() for tensor in tensors_in(call(model, example))])
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    morphogen.morph(net, net.dense, optimizer=optimizer)
    assert_optimizer_holds_model(model, optimizer)
    fresh = WILD[name][0]()
    fresh.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        pairs = zip(tensors_in(call(fresh.eval(), example)), tensors_in(call(model.eval(), example)), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    model.zero_grad(set_to_none=True)
    assert check(net, half, example).check

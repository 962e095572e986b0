"""The last layers are trained first: what is frozen keeps its weights and moments, and costs no backward pass."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen
from morphogen.cost.flops import cost
from morphogen.errors import CheckpointError, ConfigError
from morphogen.parts.unfreeze import frozen_first

from nets import Residual, Tower, deit, image


class Chain(nn.Module):
    """Four linear layers; the last is run first in the code's order of definition."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return self.head(self.three(self.two(self.one(x).relu()).relu()).relu())


class Loop:
    def __init__(self, seed=0, method=None, model=None, hooks=True):
        torch.manual_seed(seed)
        self.model = model or Tower(4, rate=0.0)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2, weight_decay=0.1)
        self.x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        method = method or morphogen.ProgressiveUnfreezing(shares=(0.34, 1.0))
        self.run = morphogen.attach(
            self.model, self.optimizer, method, example=self.x, epochs=4, steps_per_epoch=2, hooks=hooks
        )

    def train(self, first=0, until=4):
        for epoch in range(first, until):
            torch.manual_seed(epoch)
            self.run.begin_epoch(epoch)
            for _ in range(2):
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(self.x), torch.arange(2)).backward()
                self.optimizer.step()
        return self


def test_layers_are_frozen_in_the_order_in_which_they_run():
    net = morphogen.trace(Chain(), torch.randn(2, 4))
    assert frozen_first(net, 0.25) == {f"{n}.{kind}" for n in ("one", "two", "three") for kind in ("weight", "bias")}
    assert frozen_first(net, 0.5) == {"one.weight", "one.bias", "two.weight", "two.bias"}
    assert frozen_first(net, 1e-6) == frozen_first(net, 0.25)  # the last layer is always trained
    assert frozen_first(net, 1.0) == set()


def test_a_block_is_trained_as_a_whole_and_tokens_belong_to_the_beginning():
    model = deit(depth=4)
    net = morphogen.trace(model, torch.randn(2, 3, 16, 16))
    for share in (0.1, 0.3, 0.5, 0.6, 0.75, 0.9):
        frozen = frozen_first(net, share)
        assert {"pos_embed", "cls_token", "patch_embed.proj.weight"} <= frozen and "head.weight" not in frozen
        for number in range(4):
            inside = {name for name, _ in model.named_parameters() if name.startswith(f"blocks.{number}.")}
            assert inside <= frozen or not inside & frozen


def test_what_is_frozen_stays_and_no_gradient_goes_through_it():
    loop = Loop()
    before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    loop.train(until=2)
    frozen = loop.run.network.frozen
    assert {n for n, p in loop.model.named_parameters() if not p.requires_grad} == frozen and "conv1.weight" in frozen
    for name, parameter in loop.model.named_parameters():
        assert (parameter.grad is None) == (name in frozen) == torch.equal(parameter, before[name])  # no decay either
        assert (parameter in loop.optimizer.state) == (name not in frozen)
    loop.train(2)
    assert loop.run.ended and loop.run.network.frozen == frozenset()
    for name, parameter in loop.model.named_parameters():
        assert parameter.requires_grad and not torch.equal(parameter, before[name])


def test_what_a_step_costs_by_hand():
    """Of a chain, forward is 4 layers; backward 2 for each trained layer but the first of them, which needs no gradient
    of its input."""
    model = Chain()
    run = morphogen.attach(
        model, torch.optim.SGD(model.parameters(), 0.1), morphogen.ProgressiveUnfreezing(), example=torch.randn(2, 4),
        epochs=4, steps_per_epoch=1,
    )  # fmt: skip
    large, head = 2 * 4 * 4, 2 * 4 * 2
    seen = []
    for epoch in range(4):
        run.begin_epoch(epoch)
        price = cost(run.network, run.network.dense)
        assert price.forward == 3 * large + head
        seen.append(price.training - price.forward)
    assert seen == [head, 2 * head + large, 2 * head + 3 * large, 2 * head + 5 * large]


def test_a_run_goes_on_bit_for_bit():
    whole = Loop().train()
    for until in (1, 3):
        other = Loop(seed=7)
        other.run.load_state_dict(copy.deepcopy(Loop().train(until=until).run.state_dict()))
        assert {n for n, p in other.model.named_parameters() if not p.requires_grad} == other.run.network.frozen
        other.train(until)
        assert all(torch.equal(tensor, other.model.state_dict()[n]) for n, tensor in whole.model.state_dict().items())
    state = Loop().train(until=1).run.state_dict()
    for wrong in (2, -1, "0", True):
        state["parts"]["unfreeze"]["stage"] = wrong
        with pytest.raises(CheckpointError):
            Loop().run.load_state_dict(state)


def test_blocks_that_come_back_are_frozen_as_their_stage_says():
    method = morphogen.GrowOnce(pretrained=True, at=0.25, depth=0.5, resolution=1.0)
    loop = Loop(method=method + morphogen.ProgressiveUnfreezing(shares=(0.34, 1.0)))
    loop.train(until=2)
    assert len(loop.run.network.current.blocks["blocks"]) == 4
    frozen = {name for name, p in loop.model.named_parameters() if not p.requires_grad}
    assert frozen == loop.run.network.frozen == frozen_first(loop.run.network, 0.34)
    loop.train(2)
    held = [p for group in loop.optimizer.param_groups for p in group["params"]]
    assert {*held} == {*loop.model.parameters()} and len(held) == len({*held})
    assert all(p.requires_grad for p in held)


def test_what_was_frozen_before_stays_frozen_and_detaching_gives_back_the_rest():
    model = Tower(4, rate=0.0)
    model.blocks[0].conv.weight.requires_grad_(False)
    loop = Loop(model=model)
    loop.train(until=1)
    assert not model.conv1.weight.requires_grad
    loop.run.detach()
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["blocks.0.conv.weight"]


def test_an_epoch_that_cannot_begin_has_frozen_nothing(monkeypatch):
    loop = Loop()
    with monkeypatch.context() as patch:
        patch.setattr(loop.run._watch, "begun", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.run.begin_epoch(0)
    assert all(p.requires_grad for p in loop.model.parameters()) and loop.run.network.frozen == frozenset()
    loop.train()


@pytest.mark.parametrize("shares", [(), (0.5, 0.5), (0.6, 0.5), (0.0, 1.0), (0.5, 1.5), (float("nan"), 1.0)])
def test_shares_that_do_not_rise(shares):
    with pytest.raises(ConfigError, match="shares out of range"):
        morphogen.ProgressiveUnfreezing(shares=shares)


def test_what_it_does_not_go_with():
    for other in (morphogen.PruneTrain(interval=1), morphogen.AutoProg(stages=2, search_epochs=1)):
        with pytest.raises(ConfigError, match=r"neither be pruned nor searched|cannot be combined"):
            model = Residual() if isinstance(other, morphogen.PruneTrain) else Tower(4)
            method = other + morphogen.ProgressiveUnfreezing()
            morphogen.attach(
                model, torch.optim.SGD(model.parameters(), 0.1), method, example=image(), epochs=8, steps_per_epoch=9,
                probe=morphogen.Probe(lambda *_: torch.zeros(()), [(image(), torch.arange(2))]),
            )  # fmt: skip
    with pytest.raises(ConfigError, match="at most 2 stages"):
        model = Residual()
        morphogen.attach(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            morphogen.ProgressiveUnfreezing(),
            example=image(),
            epochs=2,
        )

"""A learning rate of its own for new entries: factors and steps by hand, for SGD and AdamW, and exact resume."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import morphogen
from morphogen.parts import Rates

from nets import Tower, image

EPOCHS, STEPS = 8, 4
WIDE = morphogen.NetworkExpansion(width=0.5, stages=2, operator="net2net")


def cosine(done):
    return (1 + math.cos(math.pi * done)) / 2


def loop(method, make, *, hooks=True, stop=EPOCHS, state=None):
    torch.manual_seed(0)
    model = Tower(rate=0.0)
    optimizer = make(model.parameters())
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=EPOCHS, steps_per_epoch=STEPS, hooks=hooks)
    if state is not None:
        run.load_state_dict(state)
    on(run, stop)
    return run


def on(run, stop=EPOCHS, take=None):
    """From where the run is to an epoch; `take` is a step of some other kind."""
    model, (optimizer,) = run.network.model, run.followers[1]
    for epoch in range(run.next_epoch(run.epoch), stop):
        run.begin_epoch(epoch)
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(100 * epoch + step)
            optimizer.param_groups[-1]["lr"] = 0.01 * cosine((epoch + step / STEPS) / EPOCHS)
            images = run.begin_step(torch.randn(4, 3, 8, 8, generator=generator))
            if take is None:
                optimizer.zero_grad()
                model(images).square().mean().backward()
                optimizer.step()
            else:
                take(model, optimizer, images)
            run.end_step()


SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1)
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("make", [SGD, ADAMW], ids=["SGD", "AdamW"])
def test_the_first_step_of_new_entries_is_longer_by_the_factor(make):
    """Born at half of the run: the first step at a cosine's 1 instead of 1/2."""
    plain, adapted = (loop(method, make, stop=4) for method in (WIDE, WIDE + morphogen.AdaptRates()))
    tensors = []
    for run in (plain, adapted):
        run.begin_epoch(4)
        model, optimizer = run.network.model, run.followers[1][0]
        weight = model.blocks[1].conv.weight
        before = weight.detach().clone()
        optimizer.param_groups[0]["lr"] = 0.01 * cosine(0.5)
        optimizer.zero_grad()
        model(torch.ones(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        tensors.append((before, weight.detach() - before))
    (same, short), (start, long) = tensors
    assert torch.equal(same, start)  # until the growth there is no difference
    assert torch.equal(long[:6, :6], short[:6, :6])
    torch.testing.assert_close(long[6:], 2 * short[6:], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(long[:6, 6:], 2 * short[:6, 6:], rtol=1e-4, atol=1e-7)


def test_factors_by_hand():
    run = loop(WIDE + morphogen.AdaptRates(most=3), SGD)
    part = run.part(Rates)
    (rates,) = part._rates.values()
    assert part._births == [0.5]
    for done in (0.5, 0.625, 0.75):
        expected = min(3.0, cosine(2 * done - 1) / cosine(done))
        assert part.factors(done, rates) == [1.0, pytest.approx(expected, rel=1e-6)]
    assert part.factors(31 / 32, rates)[1] == 3.0  # at most
    rates = [1.0] * 500 + [2.0] * 501
    assert part.factors(0.75, rates)[1] == 1.0  # at least: a warm-up is not repeated


def test_blocks_are_born_too_and_nothing_is_young_without_growth():
    run = loop(morphogen.NetworkExpansion(depth=0.5, stages=2) + morphogen.AdaptRates(), SGD, stop=5)
    young = run.part(Rates)._young
    assert {name.split(".")[1] for name in young} == {"1", "3"}
    assert all(ages.eq(1).all() for ages in young.values())
    assert not loop(morphogen.Dense() + morphogen.AdaptRates(), SGD).part(Rates)._young


@pytest.mark.parametrize("stop", [3, 6])
def test_resumed_bit_for_bit(stop):
    method = morphogen.NetworkExpansion(width=0.5, stages=3, operator="net2net") + morphogen.AdaptRates()
    whole = loop(method, ADAMW)
    half = loop(method, ADAMW, stop=stop)
    resumed = loop(method, ADAMW, state=copy.deepcopy(half.state_dict()))
    for name, tensor in whole.network.model.state_dict().items():
        assert torch.equal(resumed.network.model.state_dict()[name], tensor), name


def same(one, other):
    return all(map(torch.equal, one.network.model.state_dict().values(), other.network.model.state_dict().values()))


def test_going_back_from_the_end_it_is_the_same_again():
    method = WIDE + morphogen.AdaptRates()
    half, whole, run = loop(method, SGD, stop=5), loop(method, SGD), loop(method, SGD)
    run.end()
    run.load_state_dict(copy.deepcopy(half.state_dict()))
    on(run)
    assert same(run, whole)


def test_a_closure_computes_gradients_within_the_step():
    def take(model, optimizer, images):
        def closure():
            loss = model(images).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.zero_grad()

    run, whole = (loop(WIDE + morphogen.AdaptRates(), SGD, stop=stop) for stop in (0, EPOCHS))
    on(run, take=take)
    assert same(run, whole)


@pytest.mark.parametrize("first", [0.0, 0.01])
def test_each_group_has_its_own_schedule(first):
    """The first group's rate is constant, so that its new entries are not scaled; those of the other group are."""

    def make(parameters):
        *rest, weight, bias = parameters
        return torch.optim.SGD([{"params": [weight, bias], "lr": first}, {"params": rest}], 0.01)

    plain, adapted = (loop(method, make, stop=5) for method in (WIDE, WIDE + morphogen.AdaptRates()))
    part = adapted.part(Rates)
    constant, falls = (part.factors(0.75, rates)[1] for rates in part._rates.values())
    assert constant == 1.0 and falls == pytest.approx(cosine(0.5) / cosine(19 / 32), rel=1e-6)
    assert not torch.equal(plain.network.model.conv1.weight, adapted.network.model.conv1.weight)


def test_of_a_state_without_notes_nothing_is_young():
    run = loop(WIDE + morphogen.AdaptRates(), SGD, stop=4)
    small = {name: tensor.clone() for name, tensor in run.network.model.state_dict().items()}
    on(run, 6)
    run.network.model.load_state_dict(small)
    assert not run.part(Rates)._young
    on(run, 8)


def test_without_hooks_it_is_the_same():
    one, other = (loop(WIDE + morphogen.AdaptRates(), SGD, hooks=hooks) for hooks in (True, False))
    for name, tensor in one.network.model.state_dict().items():
        assert torch.equal(other.network.model.state_dict()[name], tensor), name


def test_a_detached_run_scales_nothing():
    run = loop(WIDE + morphogen.AdaptRates(), SGD, stop=6)
    run.detach()
    part, optimizer = run.part(Rates), run.followers[1][0]
    known = copy.deepcopy(part._rates)
    optimizer.zero_grad()
    run.network.model(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert part._rates == known
    assert isinstance(run.network.model, nn.Module)


def test_a_factor_below_one_is_refused():
    with pytest.raises(morphogen.ConfigError, match=r"most out of range; expected at least 1, found 0\.5"):
        morphogen.AdaptRates(most=0.5)


@pytest.mark.parametrize(("joined", "told"), [(0, 0), (3, 1)])
def test_a_run_that_is_joined_late_says_that_it_does_not_know_the_rates(joined, told):
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        morphogen.attach(model, optimizer, WIDE + morphogen.AdaptRates(), example=image(), epochs=8, start_epoch=joined)
    assert sum("rates before are not known" in str(each.message) for each in seen) == told

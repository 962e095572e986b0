"""Invariants 1 to 3 of random small nets, on random walks of six sub-networks each."""

import copy
import random

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import morphogen
from morphogen.errors import MorphError
from random_nets import RandomNet

from checks import (
    assert_equals_masked_dense,
    assert_optimizer_holds_model,
    assert_same,
    assert_survivors_equal,
    assert_unchanged,
    perturb,
    snapshot,
    take_steps,
)
from nets import image


def drawn(net, dice, *, deep):
    """Any sub-network, `deep` with all its blocks; the size of heads stays, since the scale of attention follows it."""

    def some(size):
        return sorted(dice.sample(range(size), dice.randint(1, size)))

    alive = {group.name: some(group.size) for group in net.groups if not group.inner}
    return net.subnetwork(alive=alive, blocks={s.name: some(s.size) for s in net.stacks if not deep})


def walk(number):
    """Returns how many of its sub-networks were compared with the masked dense network."""
    dice, x = random.Random(number), image()
    torch.manual_seed(number)
    model, compared = RandomNet(number), 0
    model.train()
    perturb(model)
    net = morphogen.trace(model, x)
    optimizer, ema = torch.optim.AdamW(model.parameters(), 1e-3), AveragedModel(model)
    take_steps(model, optimizer, x, steps=1)
    everything = {"optimizer": optimizer, "ema": ema}

    def to(target):
        old, before, averaged = net.current, snapshot(model, optimizer), snapshot(ema.module)
        operator = dice.choice(["quiet", "orthogonal", "replicate"])
        try:
            morphogen.morph(net, target, **everything, operator=operator)
        except MorphError as error:  # in a plain chain, a block that is off joins layers of other widths
            assert "cannot run at this size" in str(error) and target.blocks != net.dense.blocks
            assert_unchanged(net, before, old, optimizer)
            assert_same(averaged, ema.module)
            return
        assert_survivors_equal(net, before, old, target, snapshot(model, optimizer))
        assert_survivors_equal(net, averaged, old, target, snapshot(ema.module))
        assert_optimizer_holds_model(model, optimizer)

    for step in range(6):
        target = drawn(net, dice, deep=step % 2 == 0)
        if step and target.blocks == net.dense.blocks:  # others are tried out; what is compared here says more
            net.fits.add(target)
        if step % 2 == 0:
            to(net.dense)
            if model.per_channel:
                alike = morphogen.Network(copy.deepcopy(model), net.structure, net.fake)
                alike.fits = net.fits
                assert_equals_masked_dense(alike, target, x, tolerance=1e-4)
                compared += 1
        to(target)
        take_steps(model, optimizer, x, steps=1)
        ema.update_parameters(model)
    to(net.dense)
    RandomNet(number).load_state_dict(model.state_dict())
    return compared


@pytest.mark.parametrize(
    ("first", "count"), [*((n, 5) for n in range(0, 30, 5)), pytest.param(0, 300, marks=pytest.mark.nightly)]
)
def test_random_walks_of_random_nets(first, count):
    compared = sum(map(walk, range(first, first + count)))
    print(f"\n{count} nets, {6 * count} sub-networks, {compared} compared with the masked dense network")
    assert compared > count

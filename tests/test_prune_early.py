"""Pruning in the first epochs, by norm: how much goes, which channels, and when."""

import pytest
import torch

import morphogen
from morphogen.cost.flops import cost
from morphogen.extend import CheckpointError, ConfigError, Narrow
from morphogen.schedule.importance import by_importance

from checks import assert_equals_masked_dense, randomise_statistics
from nets import Residual, Tower, image
from own_loops import attached, saved, seeded, sgd, step

PRUNED = morphogen.PruneEarly(at=0.5, multiple_of=1)
"""Of four epochs two train the whole network, two the eight of its twelve channels that have half of the FLOPs."""


@pytest.mark.parametrize("target", [0.25, 0.5, 0.9])
def test_the_largest_width_that_meets_the_target(target):
    _, _, run = attached(morphogen.PruneEarly(target=target, multiple_of=1))
    network, last = run.network, run.stages[-1].subnetwork
    left = len(last.channels["conv1"])
    assert cost(network, last).forward <= target * cost(network, network.dense).forward
    wider = network.subnetwork(width=(left + 1) / 12)
    assert cost(network, wider).forward > target * cost(network, network.dense).forward


@pytest.mark.parametrize(("epochs", "at", "start"), [(100, 0.15, 15), (10, 0.15, 2), (3, 0.01, 1), (2, 0.9, 1)])
def test_when_it_cuts(epochs, at, start):
    _, _, run = attached(morphogen.PruneEarly(at=at, multiple_of=1), epochs=epochs)
    assert [stage.start for stage in run.stages] == [0, start]
    assert run.stages[0].subnetwork == run.network.dense


def test_what_stays_is_what_weighs_most_when_channels_go():
    model, optimizer, run = attached(PRUNED)
    at_attach = by_importance(run.network)
    run.begin_epoch(0)
    with torch.no_grad():  # as if it had been trained
        model.conv1.weight.mul_(torch.linspace(0.1, 3, 12).view(-1, 1, 1, 1))
    step(model, optimizer)
    order = by_importance(run.network)
    assert order != at_attach
    run.begin_epoch(1)
    assert run.network.current == run.network.dense
    for epoch in (2, 3):
        run.begin_epoch(epoch)
        assert {name: units for name, units in run.network.current.channels.items()} == {
            name: tuple(sorted(units[:8])) for name, units in order.items()
        }
        step(model, optimizer)
    run.end()
    assert model.conv1.out_channels == 8 and run.ended
    assert run.part(Narrow) is not None and run.penalised(torch.ones(())) == 1  # nothing is penalised


def test_a_cut_leaves_the_function_of_the_masked_dense_network():
    model, optimizer, run = attached(PRUNED, make=Residual)
    randomise_statistics(model)
    run.begin_epoch(0)
    step(model, optimizer)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run.begin_epoch(1)
    run.begin_epoch(2)
    other = Residual()
    other.load_state_dict(state)
    x = image(4)
    net = morphogen.trace(other, x)
    assert_equals_masked_dense(net, run.network.current, x)
    assert torch.equal(model.eval()(x), other.eval()(x))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_it_goes_on_from_a_state_bit_for_bit(stop):
    def trained(first, last, state=None):
        model = seeded()
        optimizer = sgd(model)
        run = morphogen.attach(model, optimizer, PRUNED, example=image(4), epochs=4)
        if state is not None:
            run.load_state_dict(state)
        for epoch in range(first, last):
            torch.manual_seed(epoch)
            run.begin_epoch(epoch)
            for _ in range(2):
                step(model, optimizer, image(4))
        return run, model

    _, whole = trained(0, 4)
    run, _ = trained(0, stop)
    _, resumed = trained(stop, 4, saved(run.state_dict()))
    assert resumed.conv1.out_channels == 8
    assert all(torch.equal(whole.state_dict()[name], tensor) for name, tensor in resumed.state_dict().items())


def test_a_state_of_another_length_is_refused():
    """Which channels it has kept is in the notes of its run alone."""
    model, optimizer, run = attached(PRUNED)
    for epoch in range(3):
        run.begin_epoch(epoch)
        step(model, optimizer)
    other, _, _ = attached(PRUNED, epochs=8)
    with pytest.raises(CheckpointError, match=r"does not say what was pruned.*expected PruneEarly.*8 epochs"):
        other.load_state_dict(saved(model.state_dict()))


def test_beside_growth_in_depth():
    grown = morphogen.GrowOnce(at=0.75, depth=0.5, resolution=1.0)
    model, optimizer, run = attached(PRUNED + grown)
    seen = []
    for epoch in range(4):
        run.begin_epoch(epoch)
        seen.append((model.conv1.out_channels, len(run.network.current.blocks["blocks"])))
        step(model, optimizer)
    assert seen == [(12, 2), (12, 2), (8, 2), (8, 4)]
    run.end()
    assert model.conv1.out_channels == 8


@pytest.mark.parametrize(
    ("settings", "epochs", "match"),
    [
        ({"target": 1.0}, 4, r"target out of range.*0 < target < 1.*1\.0"),
        ({"at": 0.0}, 4, "at out of range.*0 < at < 1"),
        ({"multiple_of": 0}, 4, "multiple_of at least 1"),
        ({"target": 1e-6, "multiple_of": 1}, 4, "no width of this model meets the target"),
        ({"multiple_of": 12}, 4, "no width of this model meets the target.*multiple_of 12"),
        ({"multiple_of": 1}, 1, "a stage needs at least one epoch"),
    ],
)
def test_what_cannot_be_is_refused(settings, epochs, match):
    with pytest.raises(ConfigError, match=match):
        attached(morphogen.PruneEarly(**settings), epochs=epochs)


def test_the_whole_network_is_not_what_it_leaves():
    _, _, run = attached(PRUNED, make=Tower)
    assert run.assembly.shrinks and not run.assembly.prunes

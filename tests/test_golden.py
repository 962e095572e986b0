"""Runs come out as they are written down in `golden.json`; see `golden.py`."""

import copy
import dataclasses
import warnings

import pytest
import torch

import morphogen
from morphogen.methods import METHODS

import golden
from golden import RUNS, differences

WRITTEN = golden.read()


@pytest.fixture(scope="module")
def same_machine():
    """Whether the last bits of weights can be compared."""
    return golden.reference() == WRITTEN["reference"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_out_as_it_is_written_down(name, same_machine):
    found = golden.run(name)
    lines = differences(WRITTEN["runs"][name], found, same_machine=same_machine)
    assert not lines, "\n".join([f"{name} has changed; where it is meant to: python tests/golden.py --write", *lines])
    if not same_machine:
        warnings.warn(
            "written down with another processor or another PyTorch: sub-networks, choices and counts are compared in "
            f"full, losses and the mean size of weights to {golden.CLOSE:.0%}",
            stacklevel=1,
        )


def test_every_method_is_there():
    words = {word for run in RUNS.values() for word in run.method.replace("(", " ").split()}
    assert set(METHODS) <= words
    assert list(WRITTEN["runs"]) == list(RUNS)


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with golden.steady():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- what is planted is found ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome():
    """Of a short run with a search, an average and several stages."""
    return golden.outcome("plain AutoProg")


def one_bit_of_a_weight(outcome):
    weight = next(outcome.model.parameters())
    with torch.no_grad():
        weight.view(-1)[3] = torch.nextafter(weight.view(-1)[3], torch.tensor(torch.inf))


def one_bit_of_an_average(outcome):
    one_bit_of_a_weight(golden.Outcome(outcome.averages[0], *list(vars(outcome).values())[1:]))


def one_bit_of_a_moment(outcome):
    buffer = next(iter(outcome.optimizer.state.values()))["momentum_buffer"]
    buffer.view(-1)[3] = torch.nextafter(buffer.view(-1)[3], torch.tensor(torch.inf))


def a_parameter_left_out_of_the_optimizer(outcome):
    outcome.optimizer.param_groups[0]["params"].pop()


def a_last_digit_of_a_loss(outcome):
    outcome.losses[2] += 1e-9


def a_score_of_a_search(outcome):
    outcome.searches[0]["candidates"][3]["score"] += 1e-9


@pytest.mark.parametrize(
    "plant, word",
    [
        (one_bit_of_a_weight, "weights"),
        (one_bit_of_an_average, "averages"),
        (one_bit_of_a_moment, "optimizer"),
        (a_parameter_left_out_of_the_optimizer, "optimizer"),
        (a_last_digit_of_a_loss, "losses, number 2"),
        (a_score_of_a_search, "searches"),
    ],
)
def test_last_bits_are_compared_on_the_same_machine(plant, word, outcome):
    before, changed = golden.written(outcome), copy.deepcopy(outcome)
    assert not differences(before, golden.written(changed), same_machine=True)  # a copy is no change
    plant(changed)
    after = golden.written(changed)
    lines = differences(before, after, same_machine=True)
    assert lines and all(part in " ".join(lines) for part in word.split(", ")), lines
    assert not [line for line in lines if line.startswith(("history", "choices", "counts"))]
    assert not differences(before, after, same_machine=False)


def a_stage_an_epoch_later(outcome):
    epoch, subnetwork = outcome.history[1]
    outcome.history[1] = epoch + 1, subnetwork


def a_stage_left_out(outcome):
    del outcome.history[-1]


def another_subnetwork(outcome):
    outcome.history[1] = outcome.history[1][0], outcome.history[0][1]


def another_choice(outcome):
    outcome.searches[1]["chosen"] += 1


def a_step_more(outcome):
    outcome.counts["steps"].append("epoch 5: 16x3x8x8 (1 times)")


def weights_five_percent_larger(outcome):
    with torch.no_grad():
        for weight in outcome.model.parameters():
            weight.mul_(1.05)


def a_loss_three_percent_larger(outcome):
    outcome.losses[-1] *= 1.03


def a_loss_that_is_no_number(outcome):
    outcome.losses[-1] = float("nan")


@pytest.mark.parametrize("same_machine", [True, False])
@pytest.mark.parametrize(
    "plant, word",
    [
        (a_stage_an_epoch_later, "history"),
        (a_stage_left_out, "history"),
        (another_subnetwork, "history"),
        (another_choice, "choices"),
        (a_step_more, "counts"),
        (weights_five_percent_larger, "weight"),
        (a_loss_three_percent_larger, "loss"),
        (a_loss_that_is_no_number, "loss"),
    ],
)
def test_the_rest_is_compared_on_every_machine(plant, word, same_machine, outcome):
    before, changed = golden.written(outcome), copy.deepcopy(outcome)
    plant(changed)
    lines = differences(before, golden.written(changed), same_machine=same_machine)
    assert lines and word in " ".join(lines), lines


def test_a_morph_that_comes_an_epoch_late_is_found(monkeypatch, same_machine):
    """A defect of the library, not of the figures: the whole way from a run to the message."""
    once = morphogen.NetworkExpansion.schedule

    def late(self, network, epochs):
        first, second, *others = once(self, network, epochs)
        return [first, dataclasses.replace(second, start=second.start + 1), *others]

    monkeypatch.setattr(morphogen.NetworkExpansion, "schedule", late)
    name = "plain NetworkExpansion"
    lines = differences(WRITTEN["runs"][name], golden.run(name), same_machine=same_machine)
    assert any(line.startswith("history: epoch 2") and "epoch 3" in line for line in lines), lines

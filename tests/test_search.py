"""The search: the exponent, the choice, and that measuring the candidates changes nothing."""

import copy
import json
import math
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import morphogen
from morphogen.dense.depth import interpolated
from morphogen.parts.resizing import resized
from morphogen.report.searches import draw_searches, search_rows
from morphogen.schedule.linear import linear_ratios
from morphogen.schedule.space import growth_space
from morphogen.schedule.stages import Stage
from morphogen.search.measure import measured, search
from morphogen.search.score import choose, fit_exponent
from morphogen.search.searching import Searching

from checks import snapshot, take_steps
from nets import Block, DropPath, Tower, image
from planted import Planted, sized

TIMES = [0.01, 0.013, 0.02, 0.021, 0.05]


def supernet_of(model, dimensions=("depth", "resolution"), ratio=0.5, every=1):
    net = morphogen.trace(model, image(4))
    space = growth_space(net, linear_ratios(ratio, 4), dimensions, interpolated)
    return morphogen.ElasticSupernet(net, space.candidates()[::every])


def at_size(images, size):
    return resized(images, size, "bilinear")


def searched(supernet, probe, seconds=None, usual=None, average=None, fitted=False):
    """Measured once, and each candidate by itself."""
    equal = dict.fromkeys(range(len(supernet.candidates)), 1.0)
    probes = [measured(supernet, probe, at_size, average)]
    return search(supernet, probes, seconds or equal, 2, 2, usual, fitted)


# ---------------------------------------------------------------- the exponent and the choice


@given(st.floats(0.0, 5.0), st.floats(0.01, 100))
def test_a_planted_exponent_is_recovered(exponent, factor):
    losses = [factor * t**-exponent for t in TIMES]
    assert fit_exponent(losses, TIMES) == pytest.approx(exponent, abs=1e-9)
    fitted, scores, chosen = choose(losses, TIMES)
    assert scores == pytest.approx([factor] * 5) and fitted == pytest.approx(exponent, abs=1e-9)
    assert chosen == 0  # all are equal, the first one is the fastest


def test_a_planted_exponent_is_about_recovered_under_noise():
    generator = random.Random(0)
    times = [0.01 * 1.1**i for i in range(40)]
    losses = [2 * t**-0.7 * math.exp(generator.gauss(0, 0.02)) for t in times]
    assert fit_exponent(losses, times) == pytest.approx(0.7, abs=0.02)


def test_three_points_by_hand():
    """Times 1, e, e^2; log losses 0, -1, -5: slope -5/2."""
    times = [1.0, math.e, math.e**2]
    assert fit_exponent([1.0, math.exp(-1), math.exp(-5)], times) == pytest.approx(2.5)
    exponent, scores, chosen = choose([1.0, math.exp(-1), math.exp(-5)], times)
    assert scores == pytest.approx([1.0, math.exp(1.5), 1.0]) and chosen == 0 and exponent == pytest.approx(2.5)


@pytest.mark.parametrize("losses", [[1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [0.5, 0.4, 0.9]])
def test_larger_candidates_that_are_no_better_leave_the_loss_alone(losses):
    exponent, scores, chosen = choose(losses, [1.0, 2.0, 4.0])
    assert exponent == 0 and scores == losses and chosen == losses.index(min(losses))


@pytest.mark.parametrize("scale", [1e-4, 0.02, 30.0])
@pytest.mark.parametrize("off", [0.0, 1e-5, 2e-3])
def test_times_that_are_equal_leave_the_loss_alone(scale, off):
    times = [scale * (1 + off * i) for i in range(4)]
    exponent, scores, chosen = choose([3.0, 2.0, 0.5, 1.0], times)
    assert exponent == 0 and scores == [3.0, 2.0, 0.5, 1.0] and chosen == 2


def test_one_candidate_has_no_exponent():
    assert choose([3.0], [0.1]) == (0.0, [3.0], 0)


def test_of_equals_the_faster_one():
    assert choose([1.0, 1.0, 1.0], [0.3, 0.1, 0.2])[2] == 1
    for planted in (0.37, 1.3, 2.9):  # equal but for rounding
        times = [0.05, 0.021, 0.013, 0.01, 0.02]
        assert choose([3 * t**-planted for t in times], times)[2] == 3


def test_a_planted_best_wins():
    """All but one lie on a line. (The slowest of few would bend the line towards itself.)"""
    for best in range(4):
        losses = [2 * t**-0.5 * (0.9 if i == best else 1) for i, t in enumerate(TIMES)]
        assert choose(losses, TIMES)[2] == best


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_drops_its_candidate(bad):
    whole = choose([1.0, 0.8, 0.6], [1.0, 2.0, 4.0])
    exponent, scores, chosen = choose([1.0, bad, 0.8, 0.6, bad], [1.0, 1e9, 2.0, 4.0, 1e-9])
    assert exponent == whole[0] and [scores[i] for i in (0, 2, 3)] == whole[1] and chosen == (0, 2, 3)[whole[2]]


def test_no_finite_loss_is_an_error():
    with pytest.raises(morphogen.TrainingError, match=r"no candidate has a finite loss.*learning rate"):
        choose([math.nan, math.inf, -math.inf], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("losses", [[0.0, 1.0], [1.0, -2.0], [math.nan, 0.0], [math.nan, 1.0, -1.0]])
def test_a_loss_that_is_not_above_0_is_an_error(losses):
    least = min(loss for loss in losses if math.isfinite(loss))
    with pytest.raises(morphogen.TrainingError, match=f"losses above 0, found {least}"):
        choose(losses, [1.0, 2.0, 3.0][: len(losses)])


# ---------------------------------------------------------------- a search


class Counting(Tower):
    """Batch normalisation, dropout, and buffers that a forward pass writes in place and anew."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("largest", torch.zeros(()), persistent=False)
        self.blocks[1].norm.eval()

    def forward(self, x):
        if self.training:
            self.calls += 1
            self.largest = torch.maximum(self.largest, x.detach().abs().max())
        return self.dropout(super().forward(x))


def everything(model, optimizer):
    _, key, *place = np.random.get_state()
    states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": (key.tobytes(), place)}
    return snapshot(model, optimizer), [m.training for m in model.modules()], states


@pytest.mark.parametrize("averaged", [False, True])
def test_a_search_changes_nothing(averaged):
    model = Counting()
    optimizer = torch.optim.AdamW(model.parameters())
    take_steps(model, optimizer, image(4))
    model.blocks[1].norm.eval()
    batches = [(image(4), torch.randint(10, (4,))) for _ in range(2)]
    supernet = supernet_of(model, ("depth", "resolution", "width"))
    before = everything(model, optimizer)
    objects = {name: (id(t), id(t.grad)) for name, t in model.named_parameters()}
    objects |= {name: (id(buffer), 0) for name, buffer in model.named_buffers()}

    def loss(images, labels):
        scale = torch.rand(()) + random.random() + np.random.rand()
        return F.cross_entropy(model(images), labels) * scale

    average = None
    if averaged:
        average = copy.deepcopy(model)
        for tensor in [*average.parameters(), average.blocks[1].norm.running_mean]:
            tensor.data.add_(1)
    searched(supernet, morphogen.Probe(loss, batches), average=average)
    after = everything(model, optimizer)
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(value, after[0][key]) for key, value in before[0].items())
    assert before[1] == after[1]
    assert torch.equal(before[2].pop("torch"), after[2].pop("torch")) and before[2] == after[2]
    now = {name: (id(t), id(t.grad)) for name, t in model.named_parameters()}
    assert now | {name: (id(buffer), 0) for name, buffer in model.named_buffers()} == objects
    assert supernet._now is supernet._whole


def test_a_loss_that_fails_leaves_the_network_whole():
    model = Counting()
    optimizer = torch.optim.AdamW(model.parameters())
    supernet = supernet_of(model, ("depth", "width"))
    batches = [(image(4), None)]
    before = everything(model, optimizer)
    calls = []

    def loss(images, labels):
        calls.append(model(images))
        if len(calls) == 3:
            raise ValueError("no")
        return calls[-1].square().mean()

    with pytest.raises(ValueError, match="no"):
        searched(supernet, morphogen.Probe(loss, batches))
    after = everything(model, optimizer)
    assert all(torch.equal(value, after[0][key]) for key, value in before[0].items())
    assert before[1] == after[1] and torch.equal(before[2]["torch"], after[2]["torch"])
    assert supernet._now is supernet._whole
    assert model.conv1.weight.shape[0] == 12


def test_every_candidate_sees_the_same_images_at_its_size():
    model = Tower()
    supernet = supernet_of(model, ("depth", "resolution", "width"))
    planted = Planted(model, [(8, 3, 5)] * 2, batches=3)
    for number in range(2):
        found = searched(supernet, planted.probe)
        assert found.chosen == [c.resolution == (5, 5) for c in supernet.candidates].index(True) + 13
        seen = planted.seen[number]
        assert len(seen) == 3 * len(supernet.candidates)
        for i, (size, images, labels) in enumerate(seen):
            batch, candidate = divmod(i, len(supernet.candidates))
            expected, target = planted.batches[batch]
            alive = supernet.candidates[candidate]
            assert size == (len(alive.channels["conv1"]), len(alive.blocks["blocks"]), alive.resolution[0])
            assert torch.equal(labels, target)
            assert torch.equal(images, resized(expected, alive.resolution, "bilinear"))
    assert all(
        torch.equal(mine, theirs) for (_, mine, _), (_, theirs, _) in zip(planted.seen[0], planted.seen[1], strict=True)
    )


def test_losses_are_means_over_images_in_training_mode_without_dropout():
    """What a search says of a candidate is what a plain loop over the extracted sub-network says, batch by batch."""
    model = Counting()
    net_state = copy.deepcopy(model.state_dict())
    supernet = supernet_of(model, every=4)
    batches = [(image(n), torch.randint(10, (n,))) for n in (4, 4, 4)]
    found = searched(supernet, morphogen.Probe(lambda x, y: F.cross_entropy(model(x), y), batches))
    supernet.close()
    for candidate in found.candidates:
        other = Counting()
        other.load_state_dict(net_state)
        net = morphogen.trace(other, image(4))
        morphogen.morph(net, candidate.subnetwork)
        other.train()
        for module in other.modules():
            if isinstance(module, (DropPath, nn.Dropout)):
                module.eval()
        with torch.no_grad():
            total = sum(
                F.cross_entropy(other(resized(x, candidate.subnetwork.resolution, "bilinear")), y) for x, y in batches
            )
        assert candidate.loss == pytest.approx(float(total) / 3, rel=1e-5)


def test_an_average_is_measured_in_place_of_the_weights():
    """To the last bit what is measured of a model that has the average's weights."""
    model, other = Counting(), Counting()
    batches = [(image(4), torch.randint(10, (4,)))]
    for norm in (model.blocks[1].norm, other.blocks[1].norm):
        norm.eval()
        norm.running_mean.uniform_()
    supernets = [supernet_of(each, ("depth", "resolution", "width"), every=5) for each in (model, other)]

    def probe(net):
        return morphogen.Probe(lambda x, y: F.cross_entropy(net(x), y), batches)

    expected = measured(supernets[1], probe(other), at_size)
    assert measured(supernets[0], probe(model), at_size, other) == expected
    assert measured(supernets[0], probe(model), at_size) != expected


def test_probes_are_averaged_batch_by_batch():
    supernet = supernet_of(Tower(), ("depth",), ratio=0.25)
    probes = [[[1.0, 3.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]], [[3.0, 5.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]]]
    seconds = dict.fromkeys(range(4), 1.0)
    found = search(supernet, probes, seconds, 2, 2, None, False)
    assert [c.loss for c in found.candidates] == [3.0, 2.0, 4.0, 8.0] == [c.fitted for c in found.candidates]
    assert [c.error for c in found.candidates] == pytest.approx([1.0, 0.0, 0.0, 0.0])  # of 2 - 2 and 4 - 2
    with pytest.raises(morphogen.ConfigError, match=r"the probes search on subsets of different length.*found 2, 1 b"):
        search(supernet, [probes[0], [[1.0]] * 4], seconds, 2, 2)


@pytest.mark.parametrize("steps, moments", [(16, [8, 10, 12, 14]), (9, [5, 6, 7, 8]), (2500, [1250, 1563, 1875, 2188])])
def test_when_the_losses_are_measured(steps, moments):
    """At 4, 5, 6 and 7 eighths of the search, rounded up, whatever the epochs' length; the fifth time is at its end."""
    net = morphogen.trace(Tower(), image(4))
    searching = Searching(net, Stage(0, net.dense, (net.dense, net.subnetwork(depth=0.5)), 2))
    due = []
    for epoch in range(2):
        searching.begin_epoch()
        for _ in range(steps - steps // 2 if epoch == 0 else steps // 2):
            searching.steps += 1
            if searching.is_due(steps):
                due.append(searching.before + searching.steps)
    assert due == moments
    searching.supernet.close()


def test_whatever_the_loss_draws_is_the_same_for_all_candidates():
    model = Tower()
    supernet = supernet_of(model, ("depth",))
    drawn = []

    class Augmented:
        """Batches that are augmented by the global random numbers as they come."""

        def __iter__(self):
            for _ in range(2):
                drawn.append([])
                yield torch.randn(4, 3, 8, 8), None

    def loss(images, _):
        drawn[-1].append((images.sum().item(), torch.rand(()).item(), random.random(), np.random.rand()))
        return model(images).square().mean()

    for _ in range(2):
        searched(supernet, morphogen.Probe(loss, Augmented()))
        torch.rand(7), np.random.rand(7), random.random()
    count = len(supernet.candidates)
    assert all(len(batch) == count for batch in drawn)
    draws = [set(batch) for batch in drawn]
    assert len(drawn) == 4 and all(len(batch) == 1 for batch in draws)
    assert draws[:2] == draws[2:] and draws[0] != draws[1]


@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf])
def test_a_candidate_without_a_finite_loss_is_named_and_dropped(worst, tmp_path):
    model = Tower()
    supernet = supernet_of(model)

    def loss(images, _):
        output, size = sized(model, images)
        return 0 * output.sum() + {(12, 2, 4): worst, (12, 3, 5): 0.5}.get(size, 1.0)

    with pytest.warns(UserWarning, match=r"before epoch 2: .* dropped \(2 blocks, 4 x 4\)") as warned:
        found = searched(supernet, morphogen.Probe(loss, [(image(4), None)]))
    assert len(warned) == 1
    chosen = found.subnetwork
    assert (len(chosen.blocks["blocks"]), chosen.resolution) == (3, (5, 5))
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert [c["loss"] for c in record["candidates"]].count(None) == 1
    assert [row["loss"] for row in search_rows(record)].count("not finite: dropped") == 1
    draw_searches([record], tmp_path / "search.png")
    assert (tmp_path / "search.png").stat().st_size


def test_no_candidate_with_a_finite_loss_stops_the_run():
    model = Tower()
    supernet = supernet_of(model, ("depth",))
    before = snapshot(model)
    with pytest.raises(morphogen.TrainingError, match="no candidate has a finite loss"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        searched(supernet, morphogen.Probe(lambda x, _: model(x).sum() * math.nan, [(image(4), None)]))
    assert all(torch.equal(value, snapshot(model)[key]) for key, value in before.items())


def test_a_planted_best_wins_in_a_real_supernet():
    """The network is trained so that one candidate alone knows the answer."""
    torch.manual_seed(0)
    model = Tower(rate=0.0)
    supernet = supernet_of(model, ("depth",), ratio=0.25)
    assert [len(c.blocks["blocks"]) for c in supernet.candidates] == [1, 2, 3, 4]
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    images = image(32)
    labels = torch.arange(32) % 10
    model.train()
    for step in range(60):
        number = step % 4
        supernet.run_as(number)
        optimizer.zero_grad()
        target = labels if number == 2 else labels.roll(step)
        F.cross_entropy(model(images), target).backward()
        optimizer.step()
    supernet.run_as(None)
    found = searched(supernet, morphogen.Probe(lambda x, y: F.cross_entropy(model(x), y), [(images, labels)]))
    assert found.chosen == 2, found.record()
    assert sum(isinstance(b, Block) for b in model.blocks) == 4


@pytest.mark.parametrize("batches", [[], (), torch.utils.data.DataLoader([], 2)])
def test_a_subset_without_a_batch_is_refused(batches):
    with pytest.raises(morphogen.ConfigError, match="Probe: the subset to search on has no batch"):
        morphogen.Probe(lambda x, y: x.sum(), batches)


def test_a_subset_that_turns_out_to_be_empty_is_refused():
    class Empty:
        def __iter__(self):
            return iter(())

    supernet = supernet_of(Tower(), ("depth",))
    with pytest.raises(morphogen.ConfigError, match="Probe: the subset to search on has no batch"):
        searched(supernet, morphogen.Probe(lambda x, y: x.sum(), Empty()))


@pytest.mark.parametrize("subset", [iter([1]), ((i, i) for i in range(3)), map(int, "12")])
def test_a_generator_is_refused(subset):
    with pytest.raises(morphogen.ConfigError, match=r"only once; expected a list of batches, or a DataLoader"):
        morphogen.Probe(lambda x, y: x.sum(), subset)


@pytest.mark.parametrize(
    "loss, text",
    [
        (lambda output: output, r"Probe: .*found shape \(4, 10\)"),
        (lambda output: output.tolist(), r"Probe: .*found list"),
        (lambda output: None, r"Probe: .*found NoneType"),
    ],
)
def test_a_loss_that_is_not_one_number_is_refused(loss, text):
    model = Tower()
    supernet = supernet_of(model, ("depth",))
    with pytest.raises(morphogen.ConfigError, match=text):
        searched(supernet, morphogen.Probe(lambda x, _: loss(model(x)), [(image(4), None)]))


def test_of_candidates_that_cannot_be_told_apart_the_fastest_goes_on():
    """Losses 1 +- 0.01 a batch: the standard error of a difference of 0.005 is larger; that of 0.5 is not."""
    model = Tower()
    supernet = supernet_of(model, ("depth",), ratio=0.25)
    losses = {1: [2.0] * 4, 2: [1.01, 0.99, 1.01, 1.01], 3: [1.0, 1.0, 1.0, 1.0], 4: [0.99, 1.01, 0.99, 1.0]}
    batches = [(image(4), i) for i in range(4)]

    def loss(images, i):
        output, (_, blocks, _) = sized(model, images)
        return 0 * output.sum() + losses[blocks][i]

    flat = dict(zip(range(4), (1.0, 1.0, 0.999, 1.001), strict=True))
    found = searched(supernet, morphogen.Probe(loss, batches), flat)
    assert found.exponent == 0 and found.candidates[3].score == min(c.score for c in found.candidates)
    # by hand: the differences 0.02, -0.02, 0.02, 0.01 and 0.01, -0.01, 0.01, 0
    assert [c.error for c in found.candidates][1:] == pytest.approx([0.00946485, 0.00478714, 0.0], abs=1e-7)
    assert found.chosen == 2
    shallow = supernet.candidates[1]
    for usual, chosen in ((shallow, 2), (supernet.network.dense, 3)):  # one that has all of the usual network
        assert searched(supernet, morphogen.Probe(loss, batches), flat, usual).chosen == chosen
    one = searched(supernet, morphogen.Probe(loss, batches[:1]), flat)  # nothing is known of the error
    assert one.chosen == 3 and {c.error for c in one.candidates} == {0.0}
    usual = supernet.candidates[2:]
    for number, least in enumerate(usual, start=2):  # of the third and the fourth, one that has all of the usual one
        assert searched(supernet, morphogen.Probe(loss, batches), flat, least).chosen == number


def test_a_candidate_that_was_never_trained_is_refused():
    supernet = supernet_of(Tower(), ("depth",))
    probe = morphogen.Probe(lambda x, y: x.sum(), [(image(4), None)])
    with pytest.raises(morphogen.ConfigError, match=r"a step of every candidate; expected 3 steps .* found .* 2 cand"):
        searched(supernet, probe, {0: 1.0, 2: 1.0})

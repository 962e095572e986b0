"""AutoProg in a plain loop: steps, moments, averages and blocks through supernets, searches and extractions."""

import copy
import itertools
import json
from itertools import product

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3

import morphogen
from morphogen.dense.subnet import contains
from morphogen.report.outcome import predicted_speedup, saved_schedule
from morphogen.run.state import Snapshot

from checks import assert_survivors_equal, snapshot
from nets import Tower, image
from nightly import often
from planted import Planted, plant_times
from prog_loop import NETS, Loop, plant_choices


@pytest.mark.parametrize(
    ("name", "search_epochs"),
    often(product(NETS, (1, 2)), lambda case: case[0] == "tower" or case == ("vit", 2)),
)
def test_epochs_trained_are_epochs_asked_to_the_step(name, search_epochs, monkeypatch):
    plant_choices(monkeypatch, 0, 1, 3)
    steps = 9 // search_epochs + 1
    loop = Loop(name, morphogen.AutoProg(stages=3, search_epochs=search_epochs), 9, steps).finish()
    assert loop.visited == [*range(9)] and loop.taken == 9 * steps
    assert [found.epoch for found in loop.searches] == [search_epochs, 3 + search_epochs]
    parameters = dict(loop.model.named_parameters())
    for key in loop.always:
        assert loop.optimizer.state[parameters[key]]["step"] == 9 * steps, key
    assert all(state["step"] <= 9 * steps for state in loop.optimizer.state.values())
    loop.assert_whole()


@pytest.mark.parametrize(
    ("name", "operator"),
    often(product(NETS, ("interpolate", "mogrow")), lambda case: case[0] == "tower" or case == ("vit", "mogrow")),
)
def test_what_is_alive_survives_supernet_and_extraction_bit_for_bit(name, operator, monkeypatch):
    """Momentum growth takes the weights, never the moments, from the momentum network, and only where it grows."""
    plant_choices(monkeypatch, 0, 5, 2)
    method = morphogen.AutoProg(stages=4, search_epochs=1, depth_operator=operator)
    loop = Loop(name, method, 8, 9, ema=lambda model: ModelEmaV3(model, 0.9))
    net, morphs = loop.run.network, []
    for number in range(8):
        old = net.current
        before, average = snapshot(loop.model, loop.optimizer), snapshot(loop.ema.module)
        loop.run.begin_epoch(number)
        after = snapshot(loop.model, loop.optimizer)
        if net.current != old:
            morphs.append(contains(old, net.current))
            if operator == "mogrow" and not morphs[-1]:
                before = {key: value for key, value in before.items() if "/exp_avg" in key}
                assert before
                assert_survivors_equal(net, before, old, net.current, after)
            else:
                assert_survivors_equal(net, before, old, net.current, after)
                assert_survivors_equal(net, average, old, net.current, snapshot(loop.ema.module))
        else:
            assert all(torch.equal(value, after[key]) for key, value in before.items())
        for _ in range(9):
            loop.step()
    loop.run.end()
    assert True in morphs and False in morphs
    loop.assert_whole()


@pytest.mark.parametrize(
    ("name", "hooks"), often(product(NETS, (True, False)), lambda case: case[0] == "tower" or case == ("vit", False))
)
def test_blocks_trained_are_blocks_extracted(name, hooks, monkeypatch):
    """In every search each candidate runs once; the layers tell which blocks ran."""
    plant_choices(monkeypatch, 0, 5, 2)
    loop = Loop(name, morphogen.AutoProg(stages=4, search_epochs=1, depth_operator="interpolate"), 8, 9, hooks=hooks)
    net, now = loop.run.network, set()
    paths = [path for stack in net.stacks for path in stack.blocks]
    for path in paths:
        leaf = next(m for m in net.model.get_submodule(path).modules() if not [*m.children()])
        leaf.register_forward_pre_hook(lambda *_, path=path: now.add(path))

    def step():
        now.clear()
        loop.step()
        return set(now)

    for start in (0, 2, 4):
        loop.run.begin_epoch(start)
        candidates = [loop.run.runs(i) for i in range(9)]
        ran = {candidate: step() for candidate in candidates}
        assert set(ran) == set(loop.searching.stage.candidates)
        loop.run.begin_epoch(start + 1)
        assert net.current == loop.searches[-1].subnetwork
        alive = {*paths} - set(net.structure.absent(net.current))
        assert ran[net.current] == alive == step()
        assert start == 4 or len({len(blocks) for blocks in ran.values()}) > 1


def moments(model, optimizer):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: {k: v.clone() for k, v in state.items()} for p, state in optimizer.state.items()}


@pytest.mark.parametrize(
    "search_epochs, operator", [(1, "mogrow"), pytest.param(2, "mogrow", marks=pytest.mark.nightly), (2, "rezero")]
)
def test_without_recycling_a_search_leaves_no_trace_but_its_choice(search_epochs, operator, monkeypatch):
    plant_choices(monkeypatch, 0, 1, 5)
    method = morphogen.AutoProg(stages=4, search_epochs=search_epochs, recycle=False, depth_operator=operator)
    seen = []

    def state(loop):
        ema = {key: value.clone() for key, value in loop.ema.module.state_dict().items()}
        lrs = [(group["lr"], [id(p) for p in group["params"]]) for group in loop.optimizer.param_groups]
        held = {key: value for key, value in snapshot(loop.model).items() if "/grad" not in key}
        return held, moments(loop.model, loop.optimizer), ema, lrs

    restore = Snapshot.restore

    def watched(self, run):
        restore(self, run)
        momentum = loop.momentum and {k: v.clone() for k, v in loop.momentum.state_dict().items()}
        seen.append((*state(loop), momentum))

    monkeypatch.setattr(Snapshot, "restore", watched)
    loop = Loop("vit", method, 12, 9, ema=lambda model: ModelEmaV3(model, 0.9))
    scheduler = torch.optim.lr_scheduler.StepLR(loop.optimizer, 1, 0.9)
    number, expected = 0, []
    fresh = copy.deepcopy((loop.model.state_dict(), loop.ema.module.state_dict()))
    while number < 12:
        if loop.searching is None:  # the last state before a search
            momentum = loop.momentum and {k: v.clone() for k, v in loop.momentum.state_dict().items()}
            last = (*state(loop), momentum)
        entered = loop.searching
        number = loop.epoch(number)
        if loop.searching is not None and loop.searching is not entered and number > search_epochs:
            expected.append(last)
        if number != loop.visited[-1] + 1:  # the learning rate is the user's to take back
            scheduler.last_epoch -= search_epochs - 1
        else:
            scheduler.step()
    loop.run.end()
    visited = [[*range(start, start + search_epochs), *range(start, start + 3)] for start in (0, 3, 6)]
    assert loop.visited == [*itertools.chain(*visited), 9, 10, 11]
    assert loop.taken == (12 + 3 * search_epochs) * 9
    steps = loop.optimizer.state[loop.model.head.bias]["step"]
    assert steps == 12 * 9
    assert len(seen) == 3 and len(expected) == 2
    assert not seen[0][1]  # no moments yet
    for now, then in zip(seen[1:], expected, strict=True):
        if operator == "rezero":
            continue  # its factors are multiplied into their layers before
        for mine, theirs in ((now[0], then[0]), (now[2], then[2]), (now[4] or {}, then[4] or {})):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
        assert now[1].keys() == then[1].keys()
        assert all(torch.equal(v, then[1][name][key]) for name, s in now[1].items() for key, v in s.items())
        assert now[3] == then[3]
    assert all(torch.equal(value, seen[0][0][key]) for key, value in fresh[0].items())
    assert all(torch.equal(value, seen[0][2][key]) for key, value in fresh[1].items())
    loop.assert_whole()


def test_fifty_stages_of_two_epochs_are_all_search():
    """Supplement, Table V: "there are only supernet training phases (2 epochs per stage)"; the last stage is dense."""
    net = morphogen.trace(Tower(), image())
    method = morphogen.AutoProg(stages=50, search_epochs=2)
    found, stages = [], method.continued(net, 100, ())
    while stages[-1].choose_at is not None and len(found) < 6:
        assert stages[-1].choose_at == stages[-1].start + 2 == 2 * len(stages)
        found.append(stages[-1].candidates[min(1, len(stages[-1].candidates) - 1)])
        stages = method.continued(net, 100, found)
    starts = [stage.start for stage in stages]
    assert starts == sorted({*starts}) and starts[-1] == 98 and stages[-1].subnetwork == net.dense
    with pytest.raises(morphogen.ConfigError, match="a search longer than its stage; expected stages of at least 2"):
        method.continued(net, 98, ())


@pytest.mark.parametrize("operator", ["mogrow", "interpolate"])
@pytest.mark.parametrize("scoring", ["fitted", "literal"])
def test_stages_that_are_all_search(scoring, operator, monkeypatch, tmp_path):
    """One supernet grows into the next; what each found is in the schedule that another run follows."""
    plant_choices(monkeypatch, 0, 4, 1)  # (2, 4), then of depths 2, 3, 4 and sides 4, 5 (3, 5), then (4, 5)
    plant_times(monkeypatch)
    method = morphogen.AutoProg(stages=4, search_epochs=1, scoring=scoring, depth_operator=operator)
    loop = Loop("tower", method, 4, 9)
    averaged = []
    for number in range(4):
        loop.epoch(number)
        averaged.append(loop.momentum is not None)
    loop.run.end()
    loop.assert_whole()
    assert averaged == ([True] * 3 if scoring == "fitted" or operator == "mogrow" else [False] * 3) + [False]
    assert [(epoch, s.resolution[0]) for epoch, s in loop.run.history] == [(0, 8), (1, 5), (2, 7), (3, 8)]
    saved = saved_schedule(loop.run)
    sizes = [(start, len(s.blocks["blocks"]), s.resolution[0]) for start, s in saved.stages]
    assert sizes == [(0, 2, 4), (1, 3, 5), (2, 4, 5), (3, 4, 8)]
    assert predicted_speedup(loop.run) == pytest.approx(1)  # all of them take a second
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps(saved.to_dict()))
    again = Loop("tower", morphogen.Retrain(file=str(file)), 4, 1).finish()
    assert tuple(again.run.history) == saved.stages


def test_a_search_on_top_may_be_longer_than_its_stage(monkeypatch):
    """Its epochs are thrown away, so that the stage keeps all of its own: stages of 2 epochs, searches of 3."""
    plant_choices(monkeypatch, 0, 1)
    loop = Loop("tower", morphogen.AutoProg(stages=3, search_epochs=3, recycle=False), 6, 9).finish()
    assert loop.visited == [0, 1, 2, 0, 1, 2, 3, 4, 2, 3, 4, 5] and [found.epoch for found in loop.searches] == [3, 5]
    assert loop.optimizer.state[loop.model.fc.bias]["step"] == 6 * 9
    loop.assert_whole()


def test_after_a_search_the_weights_are_the_supernets_and_not_their_average(monkeypatch):
    plant_choices(monkeypatch, 0)
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1), 8, 9)
    loop.epoch(0)
    trained = loop.model.fc.bias.clone()
    loop.run.begin_epoch(1)
    assert torch.equal(loop.model.fc.bias, trained)
    assert torch.equal(loop.momentum.module.fc.bias, trained)  # the momentum network begins anew


def test_the_full_network_is_searched_for_in_the_first_stage_alone(monkeypatch):
    plant_choices(monkeypatch, 0, 0, 1)
    loop = Loop("tower", morphogen.AutoProg(stages=4, search_epochs=1), 8, 9).finish()
    dense = loop.run.network.dense
    sizes = [
        [(len(c.subnetwork.blocks["blocks"]), c.subnetwork.resolution[0]) for c in f.candidates] for f in loop.searches
    ]
    assert (
        sizes[0] == [(d, s) for s in (4, 7, 8) for d in (2, 3, 4)]
        and loop.searches[0].candidates[-1].subnetwork == dense
    )
    assert sizes[1] == sizes[2] == [(d, s) for s in (4, 5) for d in (2, 3, 4)]
    assert [s.resolution[0] for _, s in loop.run.history] == [8, 4, 5, 4, 5, 4, 8]  # the supernets are smaller, too


def test_a_whole_network_loses_no_epochs_to_search(monkeypatch):
    plant_choices(monkeypatch, 8)
    loop = Loop("tower", morphogen.AutoProg(stages=4, search_epochs=1), 8, 9)
    searching = [loop.searching is not None]
    for number in range(8):
        loop.epoch(number)
        searching.append(loop.searching is not None)
    assert searching == [True] * 2 + [False] * 7
    assert [epoch for epoch, _ in loop.run.history] == [0, 1] and len(loop.searches) == 1
    loop.run.end()
    loop.assert_whole()


@pytest.mark.parametrize("recycle, total", [(True, 7 / 3 + 2 + 7 / 3 + 4 + 12), (False, 3 + 6 + 12 + 2 * 7 / 3)])
def test_the_predicted_speedup_by_hand(recycle, total, monkeypatch):
    """Two, three and four blocks take 1, 2 and 4 seconds; two are found, then three. Dense: 9 epochs of 4."""
    plant_times(monkeypatch, lambda number: (1.0, 2.0, 4.0)[number])
    method = morphogen.AutoProg(stages=3, search_epochs=1, dimensions=("depth",), recycle=recycle, scoring="literal")
    loop = Loop("tower", method, 9, 3)
    loop.run.probe = Planted(loop.model, [(12, 2, 8), (12, 3, 8)]).probe
    loop.finish()
    assert [len(found.subnetwork.blocks["blocks"]) for found in loop.searches] == [2, 3]
    assert predicted_speedup(loop.run) == pytest.approx(36 / total)


def test_no_speedup_is_predicted_without_searches():
    assert predicted_speedup(Loop("tower", morphogen.Prog(), 4).finish().run) is None
    assert saved_schedule(Loop("tower", morphogen.Supernet(dimensions=("depth",)), 1, 1).run) is None

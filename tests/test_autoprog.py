"""AutoProg in a plain loop: steps, moments, averages and blocks through supernets, searches and extractions."""

import copy
import dataclasses
import itertools
import json

import pytest
import timm
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import morphogen
from morphogen.dense.subnet import SubNetwork, contains
from morphogen.parts import Average, Search
from morphogen.report.outcome import predicted_speedup, saved_schedule
from morphogen.run.assembly import Assembly
from morphogen.run.state import Snapshot
from morphogen.schedule.saved import SavedSchedule
from morphogen.search.measure import search

from checks import assert_optimizer_holds_model, assert_survivors_equal, snapshot
from nets import Block, DropPath, Tower, image
from planted import Planted, found_schedule, plant_times, sized


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=10
    )


def resnet():
    return timm.create_model("resnet18", num_classes=10, layers=(1, 3, 2, 1), channels=(8, 8, 16, 16))


NETS = {
    "tower": (Tower, 8, "blocks", ("conv1.weight", "fc.bias")),
    "vit": (vit, 32, "blocks", ("patch_embed.proj.weight", "head.bias", "pos_embed")),
    "resnet": (resnet, 32, "layer2", ("conv1.weight", "fc.bias", "layer2.0.conv1.weight")),
}
MODELS = ["tower", "vit", pytest.param("resnet", marks=pytest.mark.nightly)]
STEPS = 6


def plant_choices(monkeypatch, *numbers):
    """The searches choose these candidates, whatever they measure."""
    left = iter(numbers)

    def planted(*arguments):
        found = search(*arguments)
        return dataclasses.replace(found, chosen=next(left) % len(found.candidates))

    monkeypatch.setattr("morphogen.search.searching.search", planted)


class Loop:
    """What a user writes."""

    def __init__(self, name, method, epochs, steps=STEPS, ema=None, make_optimizer=torch.optim.AdamW, **settings):
        make, self.side, self.stack, self.always = NETS[name]
        self.model, self.epochs, self.steps = make(), epochs, steps
        self.make = make
        self.optimizer = make_optimizer(self.model.parameters(), lr=1e-3)
        self.ema = ema and ema(self.model)
        self.calls = self.model
        self.batch = (image(4, self.side), torch.randint(10, (4,)))
        self.context = torch.enable_grad
        self.visited, self.receipts, self.taken = [], [], 0
        settings = {"probe": morphogen.Probe(self.loss, [self.batch]), "start_epoch": 0} | settings
        self.run = morphogen.attach(
            self.model,
            self.optimizer,
            method,
            example=self.batch[0],
            epochs=epochs,
            steps_per_epoch=steps,
            ema=self.ema,
            **settings,
        )

    @property
    def searching(self):
        search = self.run.part(Search)
        return None if search is None else search.searching

    @property
    def searches(self):
        return self.run.part(Search).searches

    @property
    def momentum(self):
        average = self.run.part(Average)
        return None if average is None else average.network

    def loss(self, images, labels):
        with self.context():
            return F.cross_entropy(self.calls(images), labels)

    def step(self):
        self.model.train()
        self.optimizer.zero_grad()
        self.loss(self.run.begin_step(self.batch[0]), self.batch[1]).backward()
        self.optimizer.step()
        self.run.end_step()
        self.taken += 1
        if self.ema is not None:
            (self.ema.update if isinstance(self.ema, ModelEmaV3) else self.ema.update_parameters)(self.model)

    def epoch(self, number):
        self.receipts.append(self.run.begin_epoch(number))
        self.visited.append(number)
        for _ in range(self.steps):
            self.step()
        return self.run.next_epoch(number)

    def finish(self):
        number = 0
        while number < self.epochs:
            number = self.epoch(number)
        self.run.end()
        return self

    def assert_whole(self):
        """The user's own network again, as it was before."""
        run, fresh = self.run, self.make()
        assert run.network.current == run.network.dense == run.history[-1][1]
        assert self.searching is None and self.momentum is None
        assert not self.model._forward_hooks and not self.model._forward_pre_hooks
        assert not any("forward" in module.__dict__ for module in self.model.modules())
        assert [*self.model.state_dict()] == [*fresh.state_dict()]
        fresh.load_state_dict(self.model.state_dict(), strict=True)
        assert_optimizer_holds_model(self.model, self.optimizer)
        with torch.no_grad():
            x = self.batch[0]
            assert torch.allclose(fresh.eval()(x), self.model.eval()(x), atol=1e-6)


@pytest.mark.parametrize("search_epochs", [1, 2])
@pytest.mark.parametrize("name", MODELS)
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


@pytest.mark.parametrize("operator", ["interpolate", "mogrow"])
@pytest.mark.parametrize("name", MODELS)
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


@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize("name", MODELS)
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


def test_an_average_of_the_supernet_is_measured_five_times(monkeypatch):
    """Momentum 1 - 1/9 in a search of 18 steps: a tenth of them, but at least a step of each of nine candidates."""
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=2), 8, 9)
    measured, decays = [], []
    average = copy.deepcopy(loop.model)

    def loss(images, labels):
        size = (len([b for b in loop.model.blocks if "forward" not in b.__dict__]), images.shape[-1])
        measured.append((loop.taken, size, loop.model.fc.bias.clone()))
        return loop.loss(images, labels)

    loop.run.probe = morphogen.Probe(loss, [loop.batch])
    for number in range(2):
        loop.run.begin_epoch(number)
        for _ in range(9):
            loop.step()
            decays.append(loop.momentum.decay)
            average.fc.bias.data.lerp_(loop.model.fc.bias.data, 1 / 9)
            if measured and loop.taken - 1 == measured[-1][0]:
                torch.testing.assert_close(measured[-1][2], average.fc.bias)
    assert set(decays) == {1 - 1 / 9}
    loop.run.begin_epoch(2)
    torch.testing.assert_close(measured[-1][2], average.fc.bias)
    assert not torch.equal(measured[-1][2], loop.model.fc.bias)
    steps = [step for step, _, _ in measured]
    assert steps == [at for at in (8, 11, 13, 15, 18) for _ in range(9)]  # the step at work is counted when it is over
    assert len({size for _, size, _ in measured}) == 9
    (found,) = loop.searches
    assert found.seconds > found.within_steps > 0 and any(c.loss != c.fitted for c in found.candidates)


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


@pytest.mark.parametrize("per_epoch", [3, 5, 7])
def test_every_candidate_is_trained_equally_often_whatever_the_epochs_length(per_epoch):
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=3), 8, per_epoch)
    runs = []
    for number in range(3):
        loop.run.begin_epoch(number)
        runs += [loop.run.runs(step) for step in range(per_epoch)]
        for _ in range(per_epoch):
            loop.step()
    for start in range(0, 3 * per_epoch - 8, 9):
        assert len({*runs[start : start + 9]}) == 9
    loop.run.begin_epoch(3)


def test_drop_path_is_laid_out_over_what_runs_and_weaker_for_small_networks(monkeypatch):
    plant_choices(monkeypatch, 0, 1)
    loop = Loop("tower", morphogen.AutoProg(stages=3, search_epochs=1, adaptive=(1.0, 1.0, 0.5)), 6, 9, hooks=False)

    def rates():
        absent = set(loop.run.network.structure.absent(loop.run.runs(0)))
        blocks = [b for i, b in enumerate(loop.model.blocks) if isinstance(b, Block) and f"blocks.{i}" not in absent]
        return [b.drop_path.drop_prob for b in blocks if isinstance(b.drop_path, DropPath)]

    for number in range(6):
        strength = (0.5, 0.75, 1.0)[number // 2]
        loop.run.begin_epoch(number)
        loop.run.begin_step()
        alive = rates()
        assert alive[-1] == pytest.approx(0.3 * strength) and sorted(alive) == alive
        loop.run.end_step()
        for _ in range(8):
            loop.step()


@pytest.mark.parametrize("kind", ["timm", "torch"])
def test_averages_follow(kind, monkeypatch):
    plant_choices(monkeypatch, 0, 1)
    averages = {
        "timm": lambda model: ModelEmaV3(model, 0.5),
        "torch": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True),
    }
    loop = Loop("tower", morphogen.AutoProg(stages=3, search_epochs=1), 6, 9, ema=averages[kind]).finish()
    loop.assert_whole()
    model = Tower()
    model.load_state_dict(loop.ema.module.state_dict())
    for _ in range(60):  # with the weights still, the average comes to be the weights
        (loop.ema.update if kind == "timm" else loop.ema.update_parameters)(loop.model)
    for (name, mine), theirs in zip(loop.ema.module.named_parameters(), loop.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)


def test_bfloat16_autocast(monkeypatch):
    plant_choices(monkeypatch, 0, 5)
    loop = Loop("vit", morphogen.AutoProg(stages=3, search_epochs=1), 6, 9)
    loop.context = lambda: torch.autocast("cpu", torch.bfloat16)
    loop.finish()
    loop.assert_whole()
    assert {p.dtype for p in loop.model.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in loop.model.parameters())


@pytest.mark.parametrize("hooks", [True, False])
def test_accumulated_gradients_are_of_one_candidate(hooks, monkeypatch):
    """Several forward and backward passes in a step: the same candidate each time, one step counted."""
    plant_choices(monkeypatch, 0, 1)
    loop = Loop("tower", morphogen.AutoProg(stages=3, search_epochs=1), 6, 9, hooks=hooks)
    sides = []
    loop.model.conv1.register_forward_pre_hook(lambda module, args: sides.append(args[0].shape[-1]))
    for number in range(6):
        loop.run.begin_epoch(number)
        for step in range(9):
            loop.optimizer.zero_grad()
            sizes = []
            for _ in range(3):
                images = loop.batch[0] if hooks else loop.run.begin_step(loop.batch[0])
                loop.loss(images, loop.batch[1]).backward()
                grads = sum(p.grad is not None for p in loop.model.parameters())
                sizes.append((sides[-1], grads))
            assert len({*sizes}) == 1 and sizes[0][0] == loop.run.runs(step).resolution[0]
            loop.optimizer.step()
            if not hooks:
                loop.run.end_step()
    assert loop.optimizer.state[loop.model.fc.bias]["step"] == 6 * 9
    loop.run.end()
    loop.assert_whole()


def test_between_epochs_the_whole_supernet_is_seen(monkeypatch):
    plant_choices(monkeypatch, 0, 1)
    loop = Loop("tower", morphogen.AutoProg(stages=3, search_epochs=1), 6, 9)
    for number in range(6):
        loop.epoch(number)
        alone = morphogen.trace(Tower(), loop.batch[0])
        morphogen.morph(alone, loop.run.network.current)
        alone.model.load_state_dict(loop.model.state_dict())
        side = loop.run.network.current.resolution
        images = F.interpolate(loop.batch[0], side)
        with torch.no_grad():
            assert torch.equal(loop.model.eval()(images), alone.model.eval()(images))


@torch._dynamo.config.patch(recompile_limit=8)  # PyTorch's own, whatever other tests have added
def test_compilations_are_bounded(monkeypatch):
    """Each candidate once to train and once to be compared, each sub-network of the schedule once."""
    torch._dynamo.reset()
    plant_choices(monkeypatch, 0)
    graphs, ran, called = [], [], []

    def backend(graph, example):
        graphs.append(graph)
        return lambda *arguments: ran.append(graph) or graph.forward(*arguments)

    loop = Loop("vit", morphogen.AutoProg(stages=2, search_epochs=1, dimensions=("depth",)), 4, 9)
    compiled = torch.compile(loop.model, backend=backend)
    loop.calls = lambda images: called.append(images) or compiled(images)
    counts = []
    for number in range(4):
        loop.epoch(number)
        counts.append(len(graphs))
    candidates = [len(found.candidates) for found in loop.searches]
    assert counts[0] == 2 * candidates[0]  # it is compared while it trains, too
    assert counts[-1] <= 2 * sum(candidates) + 2
    assert len(ran) == len(called), counts  # PyTorch has not given up compiling
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


# ---------------------------------------------------------------- retraining


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The text of a schedule: two blocks and 4 pixels, three and 5, three and 7, all."""
    with pytest.MonkeyPatch.context() as patch:
        plant_times(patch)
        return found_schedule(tmp_path_factory.mktemp("found"), [(12, 2, 4), (12, 3, 5), (12, 3, 7)]).read_text()


@pytest.fixture
def file(found, tmp_path):
    file = tmp_path / "schedule.json"
    file.write_text(found)
    return file


@pytest.mark.parametrize(
    "epochs, starts", [(8, (0, 2, 4, 6)), (16, (0, 4, 8, 12)), (4, (0, 1, 2, 3)), (6, (0, 2, 3, 5))]
)
def test_a_found_schedule_keeps_its_shares(epochs, starts, file):
    method = morphogen.Retrain(file=str(file))
    loop = Loop("tower", method, epochs, 1).finish()
    assert [epoch for epoch, _ in loop.run.history] == list(starts)
    sizes = [(len(s.blocks["blocks"]), s.resolution[0]) for _, s in loop.run.history]
    assert sizes == [(2, 4), (3, 5), (3, 7), (4, 8)]
    assert saved_schedule(loop.run).stages == tuple(loop.run.history)
    assembly = Assembly(method)
    assert assembly.operator == "quiet" and assembly.depth_operator == "mogrow"
    loop.assert_whole()


SPOILED = {
    "truncated": lambda data, text: text[: len(text) // 2],
    "empty": lambda data, text: "",
    "another format": lambda data, text: text.replace("schedule 1", "schedule 2"),
    "a list": lambda data, text: "[1, 2]",
    "null": lambda data, text: "null",
    "no stages": lambda data, text: json.dumps(data | {"stages": []}),
    "stages out of order": lambda data, text: json.dumps(data | {"stages": data["stages"][::-1]}),
    "no epochs": lambda data, text: json.dumps(data | {"epochs": 0}),
    "epochs in words": lambda data, text: json.dumps(data | {"epochs": "eight"}),
    "half a regularisation": lambda data, text: json.dumps(data | {"regularisation": data["regularisation"][:3]}),
    "no settings": lambda data, text: json.dumps(data | {"settings": {}}),
    "a sub-network in words": lambda data, text: json.dumps(
        data | {"stages": [{"epoch": 0, "subnetwork": {"channels": 3}}]}
    ),
    "an operator that is a list": lambda data, text: json.dumps(
        data | {"settings": data["settings"] | {"operator": ["random"]}}
    ),
    "a decay in words": lambda data, text: json.dumps(data | {"settings": data["settings"] | {"decay": "much"}}),
    "a horizon of null": lambda data, text: json.dumps(data | {"settings": data["settings"] | {"horizon": None}}),
    "a resizing of 3": lambda data, text: json.dumps(data | {"settings": data["settings"] | {"resizing": 3}}),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_schedule_is_one_line(what, file, found):
    morphogen.Retrain(file=str(file))
    file.write_text(SPOILED[what](json.loads(found), found))
    with pytest.raises(morphogen.ConfigError) as error:
        morphogen.Retrain(file=str(file))
    assert "\n" not in str(error.value)


def test_schedules_that_do_not_fit_are_one_line(file, tmp_path):
    with pytest.raises(morphogen.ConfigError, match=r"nowhere.json: not a growth schedule"):
        morphogen.Retrain(file=str(tmp_path / "nowhere.json"))
    with pytest.raises(morphogen.ConfigError, match=r"not a growth schedule \(IsADirectoryError"):
        morphogen.Retrain(file=str(tmp_path))
    method = morphogen.Retrain(file=str(file))
    with pytest.raises(morphogen.ConfigError, match=r"its last stage would have no epoch; expected at least 4 epochs"):
        Loop("tower", method, 2)


def test_a_run_that_was_stopped_has_no_schedule(monkeypatch):
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1), 4, 9)
    loop.epoch(0)
    assert saved_schedule(loop.run) is None
    loop.epoch(1)
    assert saved_schedule(loop.run).dense == loop.run.network.dense  # what follows is known


# ---------------------------------------------------------------- the schedule of another model


def schedule_of(*stages, path):
    """A file of stages of one epoch each."""
    usual = {
        "operator": "quiet",
        "depth_operator": "interpolate",
        "decay": None,
        "horizon": 0.1,
        "resizing": "bilinear",
    }
    strengths = tuple((1.0, 1.0, 1.0) for _ in stages)
    path.write_text(json.dumps(SavedSchedule(len(stages), tuple(enumerate(stages)), usual, strengths).to_dict()))
    return path


def followed(model, side, path, epochs=4):
    """(blocks in each stack, side) of each stage of another model that follows a file."""
    net = morphogen.trace(model, torch.zeros(2, 3, side, side))
    with pytest.warns(UserWarning, match="is the schedule of another model"):
        stages = morphogen.Retrain(file=str(path)).schedule(net, epochs)
    assert stages[-1].subnetwork == net.dense
    sizes = [
        ([len(s.subnetwork.blocks[stack.name]) for stack in net.stacks], s.subnetwork.resolution[0]) for s in stages
    ]
    return net, [s.start for s in stages], sizes


def test_a_vits_schedule_trains_a_resnet(tmp_path):
    """l = 0.5, 1, 1, 1 and n = 0.5, 0.75, 0.75, 1 of four blocks and 32 pixels, for stacks of 3 and 2 and 64 pixels.

    By hand: half of 3 and 2 blocks are 2 (halves go up) and 1; sides are 32, 48, 48 and 64.
    """
    net = morphogen.trace(vit(), torch.zeros(2, 3, 32, 32))
    stages = [net.subnetwork(depth=d, resolution=n) for d, n in ((0.5, 16), (1.0, 24), (1.0, 24), (1.0, 32))]
    path = schedule_of(*stages, path=tmp_path / "schedule.json")
    other = timm.create_model("resnet18", num_classes=10, layers=(1, 4, 3, 1), channels=(8, 8, 16, 16))
    _, starts, sizes = followed(other, 64, path, epochs=8)
    assert starts == [0, 2, 4, 6]
    assert sizes == [([2, 1], 32), ([3, 2], 48), ([3, 2], 48), ([3, 2], 64)]


def test_a_deeper_and_wider_model_follows_by_shares(tmp_path):
    """2, 3 and 4 of 4 blocks are 3, 5 (4.5) and 6 of 6; heads and channels stay whole."""
    net = morphogen.trace(vit(), torch.zeros(2, 3, 32, 32))
    stages = [net.subnetwork(depth=d, resolution=n) for d, n in ((0.5, 16), (0.75, 24), (1.0, 32))]
    path = schedule_of(*stages, path=tmp_path / "schedule.json")
    wider = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=6, num_heads=4, num_classes=10
    )
    other, _, sizes = followed(wider, 32, path)
    assert sizes == [([3], 16), ([5], 24), ([6], 32)]
    with pytest.warns(
        UserWarning, match=r"\(4 blocks, 32 x 32\).*0.50, 0.50, 1.00; 0.75, 0.75, 1.00; 1.00, 1.00, 1.00"
    ):
        schedule = morphogen.Retrain(file=str(path)).schedule(other, 3)
    assert all(stage.subnetwork.channels == other.dense.channels for stage in schedule)
    nested = [set(stage.subnetwork.blocks["blocks"]) for stage in schedule]
    assert nested[0] < nested[1] < nested[2]


@pytest.mark.parametrize(("more", "widths"), [({"multiple_of": 1}, [10, 15, 20]), ({}, [8, 16, 20])])
def test_a_schedule_of_widths_is_followed_by_shares(tmp_path, more, widths):
    """6 and 9 of 12 channels are 10 and 15 of 20, and 8 and 16 in multiples of 8."""
    net = morphogen.trace(Tower(), image())
    path = schedule_of(*(net.subnetwork(width=w) for w in (0.5, 0.75, 1.0)), path=tmp_path / "schedule.json")
    other = morphogen.trace(Tower(3, 20), image())
    with pytest.warns(UserWarning, match=r"1.00, 1.00, 0.50; 1.00, 1.00, 0.75; 1.00, 1.00, 1.00"):
        stages = morphogen.Retrain(file=str(path), **more).schedule(other, 3)
    assert [len(stage.subnetwork.channels["conv1"]) for stage in stages] == widths


def test_what_cannot_be_translated_is_refused(tmp_path):
    """Stacks at unlike shares; a depth for a model without stacks; a side for a model without images."""
    net = morphogen.trace(resnet(), torch.zeros(2, 3, 32, 32))
    for subnetwork, text in (
        (
            SubNetwork({}, {"a": (0,), "b": (0, 1, 2, 3)}),
            r"the depth .* about 0.62 of each, found 1 of 4 in a\. Retrain",
        ),
        (
            SubNetwork({}, {"a": (0, 1), "b": (0, 1)}, (8, 16)),
            r"the resolution .* about 0.75 of each, found 8 of 16 in 0",
        ),
    ):
        dense = SubNetwork({}, {"a": (0, 1, 2, 3), "b": (0, 1, 2, 3)}, subnetwork.resolution and (16, 16))
        path = schedule_of(subnetwork, dense, path=tmp_path / "schedule.json")
        with pytest.raises(
            morphogen.ConfigError, match=f"schedule.json: this model cannot follow the schedule .*{text}"
        ):
            morphogen.Retrain(file=str(path)).schedule(net, 2)
    tower = morphogen.trace(Tower(), image())
    path = schedule_of(tower.subnetwork(depth=0.5), tower.dense, path=tmp_path / "schedule.json")
    flat = morphogen.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), image())
    with pytest.raises(morphogen.ConfigError, match=r"cannot follow the schedule .*no block stack, so its depth"):
        morphogen.Retrain(file=str(path)).schedule(flat, 2)
    path = schedule_of(tower.subnetwork(resolution=4), tower.dense, path=tmp_path / "schedule.json")
    words = morphogen.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), torch.zeros(2, 4))
    with pytest.raises(morphogen.ConfigError, match=r"cannot follow the schedule .*resolution cannot change"):
        morphogen.Retrain(file=str(path)).schedule(words, 2)


# ---------------------------------------------------------------- what goes wrong in a run


def test_a_step_without_begin_step_is_refused():
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1), 4, 9, hooks=False)
    with pytest.raises(morphogen.ConfigError, match=r"before it has begun; expected images = run.begin_step\(images\)"):
        loop.run.end_step()
    loop.step()
    with pytest.raises(morphogen.ConfigError, match="before it has begun"):
        loop.run.end_step()


def test_a_search_whose_steps_were_not_told_is_refused():
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1), 4, 9)
    before = snapshot(loop.model)
    with pytest.raises(morphogen.ConfigError, match=r"a step of every candidate; .*found steps of 0 candidates"):
        loop.run.begin_epoch(1)
    assert all(torch.equal(value, snapshot(loop.model)[key]) for key, value in before.items())


def test_without_recycling_the_next_epoch_must_be_asked_for():
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1, recycle=False), 4, 9)
    assert loop.epoch(0) == 0
    with pytest.raises(morphogen.ConfigError, match=r"expected epoch 0, as run.next_epoch\(0\) says, found epoch 1"):
        loop.run.begin_epoch(1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_candidate_whose_loss_is_not_finite_is_dropped_and_the_run_goes_on(bad, monkeypatch):
    plant_times(monkeypatch)
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1), 4, 9)

    def loss(images, _):
        output, size = sized(loop.model, images)
        return output.sum() * bad if size == (12, 2, 4) else 0 * output.sum() + images.shape[-1]

    loop.run.probe = morphogen.Probe(loss, [loop.batch])
    with pytest.warns(UserWarning, match=r"it is dropped \(2 blocks, 4 x 4\)"):
        loop.finish()
    (found,) = loop.searches
    assert found.subnetwork.resolution == (4, 4) and len(found.subnetwork.blocks["blocks"]) == 3
    loop.assert_whole()


def test_a_loss_that_is_never_finite_stops_the_run_and_leaves_an_ordinary_network(monkeypatch):
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1), 4, 9, hooks=False)
    loop.run.probe = morphogen.Probe(lambda x, y: loop.model(x).sum() * float("nan"), [loop.batch])
    loop.epoch(0)
    with pytest.raises(morphogen.TrainingError, match="no candidate has a finite loss"), pytest.warns(UserWarning):
        loop.run.begin_epoch(1)
    loop.run.close()
    assert not loop.model._forward_hooks and not any("forward" in m.__dict__ for m in loop.model.modules())


def test_widths_that_no_multiple_divides_still_end_whole(monkeypatch):
    """Thirteen channels in multiples of four: 8, 12, 12, 13."""
    plant_choices(monkeypatch, 2)
    monkeypatch.setitem(NETS, "odd", (lambda: Tower(2, 13), 8, "blocks", ("fc.bias",)))
    method = morphogen.AutoProg(stages=3, search_epochs=1, dimensions=("width",), multiple_of=4)
    loop = Loop("odd", method, 6, 4)
    sizes = [len(c.channels["conv1"]) for c in loop.searching.stage.candidates]
    assert sizes == [8, 12, 13]
    loop.finish()
    assert len(loop.searches) == 1  # whole at once
    loop.assert_whole()


def test_a_space_of_ones_own(monkeypatch):
    """The dense network is a candidate of the first search although it is not listed; later what lacks something of the
    present network is none."""
    plant_choices(monkeypatch, 0, 1)
    net = morphogen.trace(Tower(), image())
    space = [net.subnetwork(depth=d, width=w) for d, w in ((0.5, 1.0), (1.0, 0.5), (0.75, 0.5), (0.75, 1.0))]
    loop = Loop("tower", morphogen.AutoProg(stages=3, search_epochs=1, space=tuple(space)), 6, 5).finish()
    first, second = ([c.subnetwork for c in found.candidates] for found in loop.searches)
    assert first == [*space, net.dense]
    assert second == [space[0], space[3]]
    loop.assert_whole()

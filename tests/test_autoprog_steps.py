"""What AutoProg trains in a step: candidates in turn, averages, drop path, accumulated gradients, compilation."""

import copy

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import morphogen

from nets import Block, DropPath, Tower
from prog_loop import Loop, plant_choices


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

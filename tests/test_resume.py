"""A run that goes on from a state ends as the one that was never stopped, bit for bit, whatever it was at."""

import copy
import io
import itertools
import multiprocessing
import os
import re
import signal
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen
from morphogen.cli import main
from morphogen.machine import timing
from morphogen.methods import build_method
from morphogen.parts import Average
from morphogen.train.checkpoint import Checkpoints, read
from morphogen.train.config import TrainConfig
from morphogen.train.loop import Run
from morphogen.train.sources import load_data

from nets import Residual, deit
from nightly import often
from processes import fresh, run_alone

EPOCHS, STEPS = 8, 5


@pytest.fixture(autouse=True)
def steps_take_as_long(monkeypatch):
    """The times of a search's candidates are those of the machine; here they are always the same."""
    monkeypatch.setattr(timing.StepClock, "medians", lambda clock: {k: 1.0 + k for k in clock.read()})


class Loop:
    """A user's own loop, of few steps on one batch."""

    def __init__(self, model, method, optimizer=torch.optim.AdamW, seed=0, **settings):
        torch.manual_seed(seed)
        self.model = Residual() if model == "cnn" else deit(depth=4, drop_rate=0.1, drop_path_rate=0.1)
        side = 8 if model == "cnn" else 16
        self.optimizer = optimizer(self.model.parameters(), 1e-2)
        self.ema = torch.optim.swa_utils.AveragedModel(self.model)
        generator = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(4, 3, side, side, generator=generator), torch.arange(4)
        probe = morphogen.Probe(lambda x, y: F.cross_entropy(self.model(x), y), [(self.x, self.y)])
        self.run = morphogen.attach(
            self.model,
            self.optimizer,
            method,
            example=self.x,
            epochs=EPOCHS,
            ema=self.ema,
            probe=probe,
            batch_size=4,
            **{"steps_per_epoch": STEPS} | settings,
        )
        self.hooks = settings.get("hooks", True)
        self.epoch = self.step = 0

    def train(self, until=None):
        """To the end, or until so many steps of an epoch are taken."""
        while self.epoch < EPOCHS:
            if self.step == 0:
                self.run.begin_epoch(self.epoch)
            while self.step < STEPS:
                loss = F.cross_entropy(self.model(self.x if self.hooks else self.run.begin_step(self.x)), self.y)
                self.optimizer.zero_grad()
                self.run.penalised(loss).backward()
                self.optimizer.step()
                if not self.hooks:
                    self.run.end_step()
                self.ema.update_parameters(self.model)
                self.step += 1
                if (self.epoch, self.step) == until:
                    return self
            self.epoch, self.step = self.run.next_epoch(self.epoch), 0
        self.run.end()
        return self

    def saved(self):
        """Through a file that torch reads without unpickling."""
        file = io.BytesIO()
        torch.save({"run": self.run.state_dict(), "random": torch.get_rng_state()}, file)
        file.seek(0)
        return torch.load(file, weights_only=True), (self.epoch, self.step)

    def load(self, state, place):
        self.run.load_state_dict(state["run"])
        torch.set_rng_state(state["random"])
        self.epoch, self.step = place
        if self.step == STEPS:
            self.epoch, self.step = self.run.next_epoch(self.epoch), 0
        return self

    def tensors(self):
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        state = {f"{names[p]}.{key}": value for p, kept in self.optimizer.state.items() for key, value in kept.items()}
        return {**self.model.state_dict(), **{f"ema.{n}": t for n, t in self.ema.state_dict().items()}, **state}


RUNS = {
    "width": ("cnn", "NetworkExpansion(stages=4)"),
    "width by copies": ("cnn", "Net2Net"),
    "pruning": ("cnn", "PruneTrain(ratio=0.5, interval=2, threshold=0.02)"),
    "pruning by steps": ("cnn", "PruneTrain(ratio=0.9, interval=2, proximal=True)"),
    "pruning to a target": (
        "cnn",
        "PruneTrain(ratio=0.9, interval=1, folded=True, target=0.3, finetune=0.3, proximal=True)",
    ),
    "growth, then pruning, and batches": (
        "cnn",
        "GrowThenPrune(stages=2, ratio=0.5, interval=1, threshold=0.02) + DynamicBatch(step=2, limit=8)",
    ),
    "depth from the average": ("vit", "Prog(stages=3)"),
    "depth with factors": ("vit", "Prog(stages=3, depth_operator='rezero')"),
    "searched": ("vit", "AutoProg(stages=3, search_epochs=2)"),
    "searched and thrown away": ("vit", "AutoProg(stages=3, search_epochs=2, recycle=False)"),
    "stacked": ("vit", "StackBERT"),
}
PLACES = [(0, 2), (1, 5), (3, 3), (4, 5), (6, 1)]


KEPT = "width", "pruning by steps", "growth, then pruning, and batches", "depth with factors", "searched"
"""One of each kind of change, in every run."""


@pytest.mark.parametrize("name", often(RUNS, lambda name: name in KEPT))
def test_goes_on_bit_for_bit(name):
    model, text = RUNS[name]
    method = build_method(text)
    expected = Loop(model, method).train()
    for place in PLACES[::3] if model == "cnn" else PLACES[:1] if "AutoProg" in text else PLACES[2:3]:
        saved = Loop(model, method).train(until=place).saved()
        resumed = Loop(model, method, seed=7).load(*saved).train()
        found, wanted = resumed.tensors(), expected.tensors()
        assert found.keys() == wanted.keys()
        assert [n for n in wanted if not torch.equal(found[n], wanted[n])] == [], place
        assert resumed.run.history == expected.run.history
        assert resumed.run.network.current == expected.run.network.current


@pytest.mark.parametrize(
    ("hooks", "place"),
    often(itertools.product((True, False), [(0, 3), (1, 2)]), lambda case: case[0] == (case[1] == (0, 3))),
)
def test_steps_that_were_not_told_are_counted_on(hooks, place):
    """The first epoch's average reaches back over a share of the steps so far."""
    method = build_method("Prog(stages=3, horizon=0.4)")
    settings = {"steps_per_epoch": None, "hooks": hooks}
    expected = Loop("vit", method, **settings).train()
    loop = Loop("vit", method, **settings).train(until=place)
    saved, decay = loop.saved(), loop.run.part(Average).network.decay
    assert decay == pytest.approx(1 - 1 / 1.2 if place[0] == 0 else 1 - 1 / (0.4 * 3 * STEPS))
    resumed = Loop("vit", method, seed=7, **settings).load(*saved).train()
    found, wanted = resumed.tensors(), expected.tensors()
    assert found.keys() == wanted.keys()
    assert [n for n in wanted if not torch.equal(found[n], wanted[n])] == []


def test_the_comparison_notices_a_lost_moment():
    method = build_method("NetworkExpansion(stages=4)")
    expected = Loop("cnn", method).train().tensors()
    loop = Loop("cnn", method).train(until=(3, 3))
    state, place = loop.saved()
    next(iter(state["run"]["optimizers"][0]["state"].values()))["exp_avg"].zero_()
    found = Loop("cnn", method, seed=7).load(state, place).train().tensors()
    assert any(not torch.equal(found[name], expected[name]) for name in expected)


def loop_at(place=(3, 3), **settings):
    return Loop("cnn", build_method("NetworkExpansion(stages=4)"), **settings).train(until=place)


def cut(state):
    state["trees"][0]["state"]["conv1.weight"] = state["trees"][0]["state"]["conv1.weight"][:-1]


def another_kind(state):
    state["optimizers"][0]["kind"] = "SGD"


def another_group(state):
    group = state["optimizers"][0]["groups"][0]
    state["optimizers"][0]["groups"] = [{**group, "parameters": group["parameters"][:1]}, group]


REFUSED = {
    "another version": (lambda s: s.update(format="morphogen run 0"), "another version.*found morphogen run 0"),
    "another model": (lambda s: s.update(dense="0" * 64), "another model"),
    "another method": (
        lambda s: s.update(method="Dense()"),
        r"another method; expected NetworkExpansion\(.*found Dense",
    ),
    "another default": (
        lambda s: s["parts"]["grow"]["schedule"].pop(1),
        r"schedule, of other sizes from epoch 2 on; expected .*at epochs \[0, 2, 4, 6\], found \[0, 4, 6\]",
    ),
    "another length": (lambda s: s.update(epochs=9), "another length, in epochs,; expected 8, found 9"),
    "a tensor cut": (cut, "conv1.weight.*shape"),
    "a tensor missing": (lambda s: s["trees"][0]["state"].pop("fc.bias"), "fc.bias.*found none"),
    "another optimizer": (another_kind, "the optimizer is another one; expected SGD"),
    "other groups": (another_group, "other parameter groups; expected 2"),
    "no average": (lambda s: s["trees"].pop(), "other averaged copies"),
    "a channel too many": (lambda s: s["current"]["channels"].update(conv1="0:99"), "conv1"),
    "no history": (lambda s: s.pop("history"), "damaged.*history"),
    "a word for a number": (lambda s: s["progress"].update(epoch="many"), "damaged"),
    "a part too many": (lambda s: s["parts"].update(average={"network": None}), "other parts; expected grow, found"),
    "a stage that is none": (lambda s: s["parts"]["grow"].update(stage=9), "damaged"),
    "no revisions": (lambda s: s["parts"]["grow"].pop("revisions"), "damaged.*revisions"),
}


def test_a_search_that_is_none_is_refused():
    method = build_method(RUNS["searched"][1])
    state, _ = Loop("vit", method).train(until=(2, 1)).saved()
    assert state["run"]["parts"]["search"]["searching"] is None
    state["run"]["parts"]["search"]["searching"] = {"before": 0, "steps": 0, "seconds": []}
    loop = Loop("vit", method, seed=7)
    with pytest.raises(morphogen.CheckpointError, match="damaged"):
        loop.run.load_state_dict(state["run"])
    assert loop.run.network.current == loop.run.network.dense and not loop.run.history


@pytest.mark.parametrize("name", REFUSED)
def test_a_state_of_another_run_changes_nothing(name):
    change, message = REFUSED[name]
    state, _ = loop_at().saved()
    change(state["run"])
    loop = Loop("cnn", build_method("NetworkExpansion(stages=4)"), seed=7)
    before = copy.deepcopy(loop.tensors())
    current = loop.run.network.current
    with pytest.raises(morphogen.CheckpointError, match=message) as refused:
        loop.run.load_state_dict(state["run"])
    assert "\n" not in str(refused.value)
    after = loop.tensors()
    assert loop.run.network.current == current and before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_batch_that_grew_from_another_first_one_is_refused():
    """As on twice as many ranks: a step's images would be others, and so its place in the epoch."""
    model, text = RUNS["growth, then pruning, and batches"]
    state, place = Loop(model, build_method(text)).train(until=(1, 2)).saved()
    state["run"]["parts"]["change the mini-batch"]["first"] = 8
    with pytest.raises(morphogen.CheckpointError, match=r"first batch.*expected 4 images, found 8.*as many ranks"):
        Loop(model, build_method(text), seed=7).load(state, place)


def test_an_optimizer_swapped_between_runs_is_refused():
    state, place = loop_at().saved()
    with pytest.raises(morphogen.CheckpointError, match=r"expected AdamW, as it was saved, found Adam$"):
        Loop("cnn", build_method("NetworkExpansion(stages=4)"), optimizer=torch.optim.Adam).load(state, place)


def test_moments_lie_in_memory_as_their_weights():
    def make():
        model = Residual().to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
        method = morphogen.NetworkExpansion(stages=2)
        run = morphogen.attach(model, optimizer, method, example=torch.randn(2, 3, 8, 8), epochs=2, start_epoch=0)
        return model, optimizer, run

    model, optimizer, run = make()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(run.state_dict())
    state["optimizers"][0]["state"]["conv1.weight"]["exp_avg"] = run.state_dict()["optimizers"][0]["state"][
        "conv1.weight"
    ]["exp_avg"].contiguous()
    model, optimizer, run = make()
    run.load_state_dict(state)
    weight = model.conv1.weight
    assert (
        optimizer.state[weight]["exp_avg"].stride()
        == weight.stride()
        == weight.contiguous(memory_format=torch.channels_last).stride()
    )


class Narrow(nn.Sequential):
    def __init__(self, num_classes):
        conv = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)
        super().__init__(*conv, nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def trainer(folder, method="NetworkExpansion(stages=3)", **settings):
    own = {"epochs": 3, "batch_size": 32, "images": 100, "test_images": 50, "mixup": 0.2, "ema": 0.9}
    config = TrainConfig(
        **{"data": "digits", "model": "test_resume:Narrow", "method": method, "output": folder, **own, **settings}
    )
    checkpoints = Checkpoints(folder, every=0, keep=100)
    return Run(config, load_data(config), build_method(method), method, config.seed, checkpoints=checkpoints)


@pytest.mark.parametrize(
    "method",
    [
        "NetworkExpansion(stages=3)",
        pytest.param("PruneTrain(ratio=0.9, interval=1, proximal=True)", marks=pytest.mark.nightly),
    ],
)
def test_the_trainer_goes_on_from_every_step(tmp_path, method):
    whole = trainer(tmp_path, method)
    list(whole.epochs())
    files = whole.checkpoints.files()
    assert len(files) == 3 * (1 + 3)  # after what begins an epoch, and after each of its steps
    for path in files[::2]:
        again = trainer(tmp_path / "again", method)
        again.load_state_dict(read(path))
        list(again.epochs())
        left, right = whole.result.state_dict(), again.result.state_dict()
        assert all(torch.equal(left[name], right[name]) for name in left), path.name
        for key in ("epochs", "morphs", "stages", "history", "flops"):
            one, other = whole.ledger.record()[key], again.ledger.record()[key]
            if isinstance(one, list):
                one, other = (
                    [{k: v for k, v in e.items() if "seconds" not in k} for e in each] for each in (one, other)
                )
            assert one == other, key
        assert again.ledger.training_seconds > again.ledger.seconds["checkpoint"] > 0


class Narrower(Narrow):
    """Another model of the same tensors."""


OF_ANOTHER = [{"seed": 1}, {"lr": 0.2}, {"images": 64}, {"method": "Dense"}, {"model": "test_resume:Narrower"}]


@pytest.mark.parametrize("change", OF_ANOTHER)
def test_the_trainer_refuses_the_checkpoint_of_another_run(tmp_path, change):
    whole = trainer(tmp_path)
    whole.checkpoints.every = 1e9
    next(whole.epochs())
    whole.checkpoints.save(1, 0, whole.state_dict())
    state = whole.checkpoints.latest()
    with pytest.raises(morphogen.CheckpointError, match=r"of another run; expected .*, as this one, found") as refused:
        trainer(tmp_path / "other", **change).load_state_dict(state)
    assert next(iter(change)) in str(refused.value) or "data" in str(refused.value)


def test_a_checkpoint_with_two_fields_exchanged_changes_nothing(tmp_path):
    """Of the run, and of its network; what is damaged by accident has another checksum already."""
    whole = trainer(tmp_path)
    epochs = whole.epochs()
    next(epochs), next(epochs)
    path = whole.checkpoints.files()[1]
    names, fresh = [*read(path)], trainer(tmp_path / "fresh")
    before = copy.deepcopy(fresh.state_dict()["attached"]["trees"])
    inner = [("attached", name) for name in read(path)["attached"]]
    exchanged = 0
    for left, right in itertools.combinations([*((name,) for name in names if name != "attached"), *inner], 2):
        state = read(path)
        here, there = (state if len(place) == 1 else state["attached"] for place in (left, right))
        one, other = here[left[-1]], there[right[-1]]
        if type(one) is type(other) and str(one) == str(other):
            continue
        here[left[-1]], there[right[-1]] = other, one
        with pytest.raises(morphogen.CheckpointError) as refused:
            fresh.load_state_dict(state)
        assert "\n" not in str(refused.value)
        exchanged += 1
    after = fresh.state_dict()["attached"]["trees"]
    assert exchanged > 150 and str(after) == str(before)
    fresh.load_state_dict(read(path))


def test_sigterm_saves_first_and_says_so(tmp_path):
    """As a scheduler does it; the run that goes on ends as one that was left alone."""
    settings = """--data digits --model resnet8(width=4) --images 256 --test_images 64 --batch_size 64 --epochs 12
        --save_every 0.01 --keep 1"""
    folder, other = tmp_path / "cut", tmp_path / "whole"
    arguments = ["train", *settings.split(), "--output"]
    command = [*arguments, str(folder)]
    run = multiprocessing.get_context(fresh()).Process(target=run_alone, args=(command, tmp_path / "said.txt"))
    run.start()
    deadline = time.monotonic() + 60
    while not list(folder.glob("checkpoints/*")) and time.monotonic() < deadline:  # it trains
        time.sleep(0.02)
    run.terminate()
    run.join(60)
    if run.exitcode != 0:  # it had not ended before
        assert run.exitcode == 128 + signal.SIGTERM
        assert re.search(
            r"stopped by SIGTERM, saved in epoch \d+ after step \d; continue with the same command and --resume$",
            (tmp_path / "said.txt").read_text().strip(),
        )
        assert len(os.listdir(folder / "checkpoints")) == 1
        assert main([*arguments, str(folder), "--resume", "true"]) == 0
    assert main([*arguments, str(other)]) == 0
    states = [torch.load(path / "model.pt", weights_only=True)["state_dict"] for path in (other, folder)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not os.listdir(folder / "checkpoints")

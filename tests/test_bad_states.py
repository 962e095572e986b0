"""A state that is refused has changed nothing, and one that is not is there to the last bit."""

import copy
import io
import random

import pytest
import torch
from torch import nn

import morphogen
from faults import difference, told, world
from morphogen.errors import CheckpointError
from morphogen.run.state import state_of
from morphogen.run.values import check_equal

from nets import Tower

EPOCHS = 4
METHODS = {
    "growth": morphogen.NetworkExpansion(width=0.5, depth=0.7, stages=2),
    "pruning": morphogen.PruneTrain(ratio=0.5, interval=1, threshold=0.02) + morphogen.DynamicBatch(step=2, limit=8),
    "average": morphogen.Prog(stages=2),
}


class Loop:
    def __init__(self, method, epochs):
        torch.manual_seed(0)
        self.model, self.x = Tower(depth=3, channels=4), torch.randn(2, 3, 8, 8)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)
        self.ema = torch.optim.swa_utils.AveragedModel(self.model)
        self.run = morphogen.attach(
            self.model, self.optimizer, method, example=self.x, epochs=EPOCHS, ema=self.ema, batch_size=2
        )
        for epoch in range(epochs):
            self.run.begin_epoch(epoch)
            self.step()
            self.step()

    def step(self):
        self.optimizer.zero_grad()
        self.run.penalised(self.model(self.x).square().mean()).backward()
        self.optimizer.step()

    def all_of_it(self):
        return told([self.model, self.ema, self.optimizer, self.run]), world()


def saved(loop):
    """A state that went through a file."""
    file = io.BytesIO()
    torch.save(loop.run.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def places(value, path=()):
    """The way to everything in a state."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(each, (dict, list)):
            yield from places(each, (*path, key))


STRANGE = [
    None,
    "x",
    -7,
    10**9,
    3.5,
    float("nan"),
    float("inf"),
    [],
    {},
    [[[]]],
    {"x": 1},
    b"x",
    1j,
    True,
    torch.zeros(2),
]
TURNED = [
    lambda t: t.to(torch.complex64),
    lambda t: t.to(torch.int64),
    lambda t: t.to(torch.float16),
    lambda t: t.double(),
    lambda t: t[None],
    lambda t: t.flatten()[:-1],
    lambda t: torch.cat([t.flatten(), t.flatten()]),
    lambda t: t.to("meta"),
    lambda t: t.to_sparse(),
    lambda t: t + 1,
    lambda t: t.tolist(),
]


def mutated(state, dice):
    """A state with one thing of it another one; says which."""
    *path, last = dice.choice(sorted(places(state), key=str))
    inside = state
    for key in path:
        inside = inside[key]
    value = inside[last]
    way = dice.choice(["strange", "gone", "more", "moved", "turned"])
    if way == "gone":
        del inside[last]
    elif way == "more" and isinstance(value, dict):
        value[dice.choice(["unknown", 7])] = dice.choice(STRANGE)
    elif way == "more" and isinstance(value, list):
        value.append(copy.deepcopy(value[0]) if value else 0)
    elif way == "moved" and isinstance(inside, dict):
        inside[f"{last} there"] = inside.pop(last)
    elif isinstance(value, torch.Tensor) and way != "strange":
        try:
            inside[last] = dice.choice(TURNED)(value)
        except RuntimeError:
            inside[last] = None
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and way != "strange":
        inside[last] = dice.choice([-value, value + 1, value + 0.5, float("nan"), str(value), [value]])
    else:
        inside[last] = dice.choice(STRANGE)
    return f"{way} at {'/'.join(map(str, [*path, last]))}"


@pytest.mark.parametrize("count", [8, pytest.param(167, marks=pytest.mark.nightly)])  # of each of three: 24, and 501
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_a_state_is_loaded_as_it_is_or_refused_with_nothing_changed(name, count):
    good = saved(Loop(METHODS[name], 2))
    loop, dice = Loop(METHODS[name], 3), random.Random(name)
    ours, ended = saved(loop), {"refused": 0, "loaded": 0}
    for _ in range(count):
        state = copy.deepcopy(good)
        what = mutated(state, dice)
        before = loop.all_of_it()
        try:
            loop.run.load_state_dict(state)
        except CheckpointError:
            assert loop.all_of_it() == before, (what, difference(before, loop.all_of_it()))
            ended["refused"] += 1
        else:
            check_equal(state, state_of(loop.run))
            ended["loaded"] += 1
            loop.run.begin_epoch(loop.run.next_epoch(loop.run.epoch))
            loop.step()  # it trains
            loop.run.load_state_dict(ours)
    loop.run.load_state_dict(good)
    loop.run.begin_epoch(2)
    loop.step()
    print(f"\n{name}: {count} mutated states, {ended}")
    assert ended["refused"] > count / 2


def turned_moment(state, dtype):
    entry = state["optimizers"][0]["state"]["conv1.weight"]
    entry["exp_avg"] = entry["exp_avg"].to(dtype)


BAD = {
    "a moment of another shape": lambda s: s["optimizers"][0]["state"]["conv1.weight"].update(exp_avg=torch.zeros(2)),
    "a moment of another type": lambda s: turned_moment(s, torch.float64),
    "a parameter twice": lambda s: s["optimizers"][0]["groups"][0]["parameters"].append("conv1.weight"),
    "a state that is a number": lambda s: s["optimizers"][0]["state"].update({"conv1.weight": 7}),
    "a moment less": lambda s: s["optimizers"][0]["state"]["conv1.weight"].pop("exp_avg"),
    "an unknown buffer": lambda s: s["trees"][0]["buffers"].update(q=torch.zeros(1)),
    "an unknown parameter": lambda s: s["optimizers"][0]["groups"][0]["parameters"].append("zz"),
    "a learning rate that is none": lambda s: s["optimizers"][0]["groups"][0]["settings"].update(lr=float("nan")),
    "epoch -7": lambda s: s["progress"].update(epoch=-7),
    "epoch NaN": lambda s: s["progress"].update(epoch=float("nan")),
    "epoch 4 of 4": lambda s: s["progress"].update(epoch=4),
    "a complex weight": lambda s: s["trees"][0]["state"].update({"conv1.bias": torch.zeros(2, dtype=torch.cfloat)}),
    "a whole weight": lambda s: s["trees"][1]["state"].update({"module.conv1.bias": torch.zeros(2, dtype=torch.int64)}),
    "a part less": lambda s: s["parts"].popitem(),
    "no dictionary": lambda s: s.clear(),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_train_is_refused(name):
    loop = Loop(METHODS["growth"], 2)
    state = saved(loop)
    BAD[name](state)
    other = Loop(METHODS["growth"], 3)
    before = other.all_of_it()
    with pytest.raises(CheckpointError):
        other.run.load_state_dict(state)
    assert other.all_of_it() == before, difference(before, other.all_of_it())
    other.step()


def test_a_setting_that_one_state_has_does_not_stay_when_another_is_loaded():
    loop = Loop(METHODS["growth"], 2)
    state = saved(loop)
    more = copy.deepcopy(state)
    more["optimizers"][0]["groups"][0]["settings"]["of_mine"] = 3.0
    loop.run.load_state_dict(more)
    assert loop.optimizer.param_groups[0]["of_mine"] == 3.0
    loop.run.load_state_dict(state)
    assert "of_mine" not in loop.optimizer.param_groups[0]
    loop.step()


def test_moments_of_another_type_in_a_scripts_checkpoint_are_cast_as_pytorch_casts_them():
    loop, other = Loop(METHODS["growth"], 2), Loop(METHODS["growth"], 3)
    state = copy.deepcopy(loop.optimizer.state_dict())
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].double()
    other.model.load_state_dict(loop.model.state_dict())
    other.optimizer.load_state_dict(state)
    assert next(iter(other.optimizer.state.values()))["exp_avg"].dtype == torch.float32
    other.step()


SCRIPTS = {
    "a weight less": lambda m, o: m.popitem(),
    "a weight more": lambda m, o: m.update(more=torch.zeros(1)),
    "a complex weight": lambda m, o: m.update({"conv1.bias": m["conv1.bias"].to(torch.complex64)}),
    "a weight of another shape": lambda m, o: m.update({"conv1.bias": torch.zeros(3)}),
    "a moment of another shape": lambda m, o: o["state"][0].update(exp_avg=torch.zeros(7)),
    "a complex moment": lambda m, o: o["state"][0].update(exp_avg=o["state"][0]["exp_avg"].to(torch.complex64)),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_scripts_checkpoint_of_another_size_is_refused_with_nothing_changed(name):
    loop, other = Loop(METHODS["growth"], 2), Loop(METHODS["growth"], 3)
    model, optimizer = copy.deepcopy([loop.model.state_dict(), loop.optimizer.state_dict()])
    SCRIPTS[name](model, optimizer)
    before = other.all_of_it()
    with pytest.raises(CheckpointError):
        if "moment" in name:
            other.optimizer.load_state_dict(optimizer)
        else:
            other.model.load_state_dict(model)
    assert other.all_of_it() == before, difference(before, other.all_of_it())
    other.step()
    other.model.load_state_dict(loop.model.state_dict())
    other.optimizer.load_state_dict(loop.optimizer.state_dict())
    assert all(isinstance(p, nn.Parameter) and torch.equal(p, q) for p, q in zip(*_both(loop, other), strict=True))


def _both(*loops):
    return [list(loop.model.parameters()) for loop in loops]

"""What optimizers keep is told by a rehearsed step: it follows from its own beginning, or is refused by `attach`."""

import copy
import random

import pytest
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

import morphogen
from morphogen.errors import MorphError
from morphogen.morph.optimizer_rehearsal import rehearse_step

from checks import snapshot, take_steps


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def x():
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


class Own(torch.optim.Optimizer):
    """Plain gradient descent; what it keeps besides is each test's."""

    def __init__(self, parameters, keep=lambda optimizer, parameter, state: None):
        super().__init__(parameters, {"lr": 0.1})
        self.keep = keep

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.keep(self, parameter, self.state[parameter])
                    parameter.add_(parameter.grad, alpha=-group["lr"])


def slow(optimizer, parameter, state):  # as Ranger begins it
    if "slow_buffer" not in state:
        state["slow_buffer"] = torch.empty_like(parameter)
        state["slow_buffer"].copy_(parameter)


class Projector:
    def __init__(self, size):
        self.basis = torch.eye(size)


FOLLOW = {
    "weights in empty memory": (slow, {"slow_buffer": None}),
    "weights cloned": (lambda o, p, s: s.setdefault("z", p.clone()), {"z": None}),
    "a constant": (lambda o, p, s: s.update(scale=s.get("scale", torch.full_like(p, 0.25)) + 1), {"scale": 1.25}),
    "a gradient": (lambda o, p, s: s.update(buffer=p.grad.clone()), {"buffer": 0.0}),
    "scalars anywhere": (lambda o, p, s: o.state["all"].update(step=torch.tensor(1.0)), {}),
}


@pytest.mark.parametrize("name", FOLLOW)
def test_what_is_new_of_a_state_begins_as_the_optimizer_begins_it(name):
    keep, expected = FOLLOW[name]
    model = net()
    optimizer = Own(model.parameters(), keep)
    network = morphogen.trace(model, x())
    half = network.subnetwork(width=0.5)
    morphogen.morph(network, half, optimizer=optimizer)
    take_steps(model, optimizer, x(), steps=3)
    before = snapshot(model, optimizer)
    morphogen.morph(network, network.dense, optimizer=optimizer)
    assert network.begins[optimizer] == expected
    after, weight = snapshot(model, optimizer), model[0].weight
    for key, begin in expected.items():
        state = optimizer.state[weight][key]
        assert state.shape == weight.shape
        assert torch.equal(state[4:], weight[4:] if begin is None else torch.full_like(weight[4:], begin))
        old = next(value for name, value in before.items() if name.startswith("0.weight/") and key in name)
        assert torch.equal(state[:4], old)
    assert before.keys() == after.keys()


def in_group(optimizer, parameter, state):
    optimizer.param_groups[0]["history"] = torch.zeros(parameter.numel())


def by_name(optimizer, parameter, state):
    optimizer.state["all"][str(parameter.shape)] = torch.zeros_like(parameter)


def in_attribute(optimizer, parameter, state):
    optimizer.__dict__.setdefault("history", {})[parameter] = torch.zeros_like(parameter)


REFUSED = {
    "per row": (lambda o, p, s: s.update(rows=torch.zeros(p.shape[0])), r"'rows' of shape \(8,\)"),
    "per column, kept wide": (lambda o, p, s: s.update(columns=p[:1] * 1), r"'columns' of shape \(1"),
    "matrices in a list": (lambda o, p, s: s.update(Q=[torch.eye(len(p))]), r"'Q' of shape \(8, 8\)"),
    "in an object": (lambda o, p, s: s.update(projector=Projector(len(p))), r"'projector' of shape \(8, 8\)"),
    "under another key": (by_name, r"state of 'all', not kept with its parameter"),
    "in the group": (in_group, r"group 0, 'history', not kept with its parameter"),
    "in the optimizer": (in_attribute, r"attribute 'history', not kept with its parameter"),
    "on the parameter": (lambda o, p, s: setattr(p, "hess", torch.zeros_like(p)), r"its attribute hess"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_follow_is_refused_by_attach(name):
    keep, found = REFUSED[name]
    model = net()
    optimizer = Own(model.parameters(), keep)
    for method in (morphogen.NetworkExpansion(width=0.5, stages=2), morphogen.PruneTrain()):
        with pytest.raises(MorphError, match=f"Own keeps a state that cannot follow.*{found}") as refused:
            morphogen.attach(model, optimizer, method, example=x(), epochs=4)
        assert "\n" not in str(refused.value)


def test_moments_kept_in_an_attribute_from_the_start_are_refused():
    model = net()
    optimizer = Own(model.parameters())
    optimizer.before = [torch.zeros_like(p) for p in model.parameters()]
    with pytest.raises(MorphError, match=r"its own attribute 'before' of shape"):
        morphogen.attach(model, optimizer, morphogen.NetworkExpansion(width=0.5, stages=2), example=x(), epochs=4)


def test_an_optimizer_that_cannot_be_rehearsed_says_so():
    model = net()
    optimizer = torch.optim.SparseAdam(model.parameters())
    with pytest.warns(UserWarning, match="no step of SparseAdam can be rehearsed.*begin at zero"):
        assert rehearse_step(optimizer, {p: n for n, p in model.named_parameters()}) == {}


@pytest.mark.parametrize("trained", [False, True])
def test_a_rehearsal_leaves_all_as_it_was(trained):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    if trained:
        take_steps(model, optimizer, x(), steps=2)
        schedule.step()
    calls.clear()
    before, groups = snapshot(model, optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    attributes, grads = dict(vars(optimizer)), [p.grad for p in model.parameters()]
    random_state = random.getstate(), torch.get_rng_state()
    begins = rehearse_step(optimizer, {p: n for n, p in model.named_parameters()})
    assert begins == {"exp_avg": 0.0, "exp_avg_sq": 0.0} and not calls
    after = snapshot(model, optimizer)
    assert before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())
    assert optimizer.state_dict()["param_groups"] == groups and vars(optimizer) == attributes
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert random.getstate() == random_state[0] and torch.equal(torch.get_rng_state(), random_state[1])


class Whole(nn.Module):
    """A backbone, and a head that reads it."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = net(), nn.Linear(4, 2)

    def forward(self, images):
        return self.head(self.backbone(images))


def test_the_backbone_of_a_whole_with_the_optimizer_of_the_whole():
    model = Whole()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    method = morphogen.NetworkExpansion(width=0.5, stages=2)

    def train(model, optimizer, run, epochs):
        for epoch in epochs:
            torch.manual_seed(epoch)
            run.begin_epoch(epoch)
            take_steps(model, optimizer, x(), steps=1)

    def attach(model, optimizer):
        return morphogen.attach(model.backbone, optimizer, method, example=x(), epochs=4)

    run = attach(model, optimizer)
    train(model, optimizer, run, range(2))
    assert model.backbone[0].weight.shape == (4, 6) and model.head.weight.shape == (2, 4)
    saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, run, range(2, 4))
    Whole().load_state_dict(model.state_dict())
    again = Whole()
    other = torch.optim.AdamW(again.parameters(), 1e-2)
    run = attach(again, other)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert again.backbone[0].weight.shape == (4, 6)
    train(again, other, run, range(2, 4))
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


CANNOT = {"adahessian": "its attribute hess", "kron": "'Q'", "kronc": "'Q'", "kronw": "'Q'"}
OF_TIMM = [name for name in list_optimizers() if not name.startswith(("bnb", "fused", "lookahead"))]


@pytest.mark.parametrize("name", OF_TIMM)
def test_every_optimizer_of_timm_follows_or_is_refused(name):
    model = net()
    optimizer = create_optimizer_v2(model, name, lr=1e-3)
    names = {p: n for n, p in model.named_parameters()}
    if name in CANNOT:
        with pytest.raises(MorphError, match=f"keeps a state that cannot follow.*{CANNOT[name]}"):
            rehearse_step(optimizer, names)
        return
    network = morphogen.trace(model, x())
    half = network.subnetwork(width=0.5)
    morphogen.morph(network, half, optimizer=optimizer)
    take_steps(model, optimizer, x(), steps=2)
    old = {k: v.clone() for k, v in optimizer.state[model[0].weight].items() if torch.is_tensor(v) and v.ndim == 2}
    morphogen.morph(network, network.dense, optimizer=optimizer)
    state, begins, weight = optimizer.state[model[0].weight], network.begins[optimizer], model[0].weight.detach()
    assert old or not begins
    for key, value in old.items():
        assert torch.equal(state[key][:4], value)
        if begins[key] is None:
            assert torch.equal(state[key][4:], weight[4:].to(state[key]))
        elif key not in ("exp_avg_sq", "exp_inf"):
            assert torch.equal(state[key][4:], torch.full_like(state[key][4:], begins[key]))
    take_steps(model, optimizer, x(), steps=2)
    assert all(parameter.isfinite().all() for parameter in model.parameters())

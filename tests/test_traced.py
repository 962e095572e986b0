"""One trace for models that are alike says what a trace of each would."""

import copy
from dataclasses import fields, is_dataclass

import pytest
import torch
from torch import nn

import morphogen
from morphogen.cost.memory import StepMemory

from checks import assert_equals_masked_dense, randomise_statistics, tensors
from nets import NETS, DropPath, Plain, Residual, Tower, image, small
from nightly import often
from traced import Unlike, likeness, reading, traced_once

MODELS = {
    "Residual": (Residual, 8),
    "Mixed": (NETS["Mixed"], 8),
    "Tower": (Tower, 8),
    "deit": (lambda: small("deit_tiny_patch16_224")[0], 32),
}


@pytest.fixture
def once():
    with traced_once():
        yield


def same(one, other):
    """Equal in every part, tensors too."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if is_dataclass(one):
        return type(one) is type(other) and all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("name", often(MODELS, lambda name: name != "deit"))
def test_a_shared_trace_equals_a_fresh_one(name):
    make, side = MODELS[name]
    x, model = image(size=side), make()
    fresh = morphogen.trace(copy.deepcopy(model), x)
    with traced_once():
        first = morphogen.trace(make(), x)
        morphogen.morph(first, first.subnetwork(width=0.5, resolution=side // 2))
        shared = morphogen.trace(model, torch.zeros_like(x))
    assert shared.structure is first.structure and shared.fake is first.fake  # it is one
    assert same(shared.structure, fresh.structure) and shared.current == fresh.current == shared.dense
    assert same(shared.initial, fresh.initial) and same(shared.constants, fresh.constants)
    assert len(shared.grids.known()) == len(fresh.grids.known())  # what it was asked for itself
    for net in (shared, fresh):
        morphogen.morph(net, net.subnetwork(width=0.5, depth=0.5 if net.stacks else None, resolution=side // 2))
        morphogen.morph(net, net.dense, generator=torch.Generator().manual_seed(0), depth_operator="interpolate")
    assert same(tensors(shared.model), tensors(fresh.model))
    assert same(list(shared.grids.known()), list(fresh.grids.known()))


def test_a_step_followed_once_has_the_memory_of_one_followed_anew():
    """Of optimizers that are alike; the state of another counts."""

    def needed(momentum, width, lr=0.1):
        model = Residual()
        optimizer = torch.optim.SGD(model.parameters(), lr, momentum)
        net = morphogen.trace(model, image())
        return StepMemory(net, [optimizer]).bytes(net.subnetwork(width=width), 4)

    cases = [(momentum, width) for momentum in (0.0, 0.9) for width in (0.5, 1.0)]
    fresh = [needed(*case) for case in cases]
    assert len({*fresh}) == 4
    with traced_once(), pytest.MonkeyPatch.context() as patch:
        assert [needed(*case) for case in cases] == fresh
        patch.setattr(StepMemory, "_step", None)  # nothing is followed any more
        assert [needed(*case, lr=0.2) for case in cases] == fresh


def changed(change, make=Residual):
    model = make()
    change(model)
    return model


class Doubled(Residual):
    def forward(self, x):
        return 2 * super().forward(x)


def tied(model):
    model.conv2.weight = nn.Parameter(torch.zeros(8, 12, 3, 3))
    model.bn2.weight = model.bn.weight


OTHERS = {
    "a stride": changed(lambda model: setattr(model.conv2, "dilation", (2, 2))),
    "a width": changed(lambda model: setattr(model, "fc", nn.Linear(8, 7))),
    "its code": Doubled(),
    "tied tensors": changed(tied),
    "frozen": changed(lambda model: model.conv1.requires_grad_(False)),
    "a dtype": Residual().double(),
    "a memory format": Residual().to(memory_format=torch.channels_last),
    "a missing bias": changed(lambda model: model.fc.register_parameter("bias", None)),
    "a place": changed(lambda model: setattr(model, "bn2", model.bn)),
    "a note": changed(lambda model: setattr(model, "note", "new")),
    "one memory": changed(lambda model: setattr(model.bn2.bias, "data", model.bn.bias.data)),
}


@pytest.mark.parametrize("row", OTHERS)
def test_whatever_differs_but_values_is_read_anew(row):
    assert likeness(OTHERS[row], image()) != likeness(Residual(), image())


def test_the_example_and_what_is_excluded_count():
    one = likeness(Residual(), image())
    assert one == likeness(changed(randomise_statistics), image())
    for other in ((image(3),), (image(size=16),), (image().double(),), (image(), ("conv1",)), ((image(), 1),)):
        assert likeness(Residual(), *other) != one
    assert likeness(Tower(rate=0.1), image()) != likeness(Tower(), image())


class Odd(Plain):
    def __init__(self, thing):
        super().__init__()
        self.thing = thing


def around(kept):
    """A function that depends on what is around it."""
    return lambda x: kept


@pytest.mark.parametrize("thing", [torch.ones(1), object(), around(1), [DropPath(0.1)]])
def test_what_cannot_be_compared_is_never_shared(thing, once):
    with pytest.raises(Unlike):
        likeness(Odd(thing), image())
    assert morphogen.trace(Odd(thing), image()).structure is not morphogen.trace(Odd(thing), image()).structure


def test_hooks_are_seen_each_time(once):
    for _ in range(2):
        model = Residual()
        model.conv1.register_forward_hook(lambda *call: call[2] * 2)
        with pytest.warns(UserWarning, match="^conv1: forward hooks are not read"):
            morphogen.trace(model, image())


def test_what_a_trace_warns_of_is_said_each_time(once):
    def read():
        with pytest.warns(UserWarning, match=r"^1: no rule for the op aten.fake_quantize_per_tensor_affine.default"):
            return morphogen.trace(nn.Sequential(nn.Conv2d(3, 4, 1), Renormalised(), nn.Conv2d(4, 4, 1)), image())

    assert read().structure is read().structure


class Renormalised(nn.Module):
    def forward(self, x):
        return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)


def test_a_wrong_morph_of_a_shared_trace_is_found(once, monkeypatch):
    morph = morphogen.morph

    def wrong(net, target, **options):
        morph(net, target, **options)
        with torch.no_grad():
            net.model.conv2.weight.copy_(net.model.conv2.weight.flip(1))

    for defect in (morph, wrong):
        monkeypatch.setattr(morphogen, "morph", defect)
        for _ in range(2):
            model = changed(randomise_statistics)
            net = morphogen.trace(model, image())
            if defect is morph:
                assert_equals_masked_dense(net, net.subnetwork(width=0.5), image())
                continue
            with pytest.raises(AssertionError, match="not close"):
                assert_equals_masked_dense(net, net.subnetwork(width=0.5), image())


def test_afterwards_every_model_is_read_again():
    with traced_once():
        inside = reading.read
        for read in (inside, morphogen.trace, attached):
            assert read(Residual(), image()).structure is read(Residual(), image()).structure
    for read in (inside, morphogen.trace, attached):
        assert read(Residual(), image()).structure is not read(Residual(), image()).structure
    assert reading.read is not inside


def attached(model, example):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return morphogen.attach(model, optimizer, morphogen.Dense(), example=example, epochs=1).network

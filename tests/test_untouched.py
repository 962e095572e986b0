"""Whatever happens in `trace`, everything that the model reaches is afterwards what it was."""

import random
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from types import FunctionType, MethodType

import numpy as np
import pytest
import torch
from torch import nn

import morphogen

from nets import image


def everything(root):
    """All that can be reached from an object: identities, contents, values, gradients, and where random numbers are."""
    found, queue = [], [root]
    seen = {}
    while queue:
        each = queue.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each  # kept, so that its id is not given to another
        held = [each.cell_contents for cell in [each] if hasattr(cell, "cell_contents")]
        if isinstance(each, torch.Tensor):
            bits = each.detach().clone().contiguous().view(-1).view(torch.uint8).tolist()
            found.append((id(each), tuple(each.shape), each.dtype, each.requires_grad, each._version, bits))
            held += [each.grad, each.grad_fn]
        elif isinstance(each, dict):
            held += [*each.keys(), *each.values()]
        elif isinstance(each, (list, tuple, set)):
            held += list(each)
        elif isinstance(each, MethodType):
            held += [each.__self__]
        elif isinstance(each, FunctionType):
            held += [*(each.__closure__ or ()), *(each.__defaults__ or ())]
        if hasattr(each, "__dict__") and not isinstance(each, (type, FunctionType)):
            held += list(vars(each).values())
            found.append((id(each), sorted((name, id(value)) for name, value in vars(each).items())))
        plain = isinstance(each, (bool, int, float, str, bytes, type(None)))
        found.append((id(each), each if plain else [id(one) for one in held]))
        queue += held
    return found, (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))


class Net(nn.Module):
    """conv (8) - `middle` - conv (4); `middle` and `setup` are what a row is about."""

    def __init__(self, middle=lambda net, x: x, setup=lambda net: None, mode=lambda net, training: None):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.middle, self.mode = middle, mode
        setup(self)

    def forward(self, x):
        return self.second(self.middle(self, self.first(x).relu())).mean((2, 3))

    def train(self, mode=True):
        self.mode(self, mode)
        return super().train(mode)


class Frozen(OrderedDict):
    """As diffusers keeps its settings: nothing can be put in or taken out any more."""

    def __init__(self, *entries):
        super().__init__(*entries)
        self.made = True

    def refuse(self, *_, **__):
        raise RuntimeError("nothing can be changed")

    clear = update = pop = setdefault = __delitem__ = refuse

    def __setitem__(self, key, value):
        if hasattr(self, "made"):
            self.refuse()
        super().__setitem__(key, value)

    def __reduce__(self):
        return Frozen, (dict(self),)


@dataclass
class Notes:
    """An object of the user's that a forward pass writes to."""

    seen: dict = field(default_factory=lambda: {"shapes": [], "last": None})


def notes(net, x):
    net.notes.seen["shapes"].append(tuple(x.shape))
    net.notes.seen["last"] = x
    net.heads[0][0] = x
    return x


def draws(net, x):
    return x * (1 + random.random() + float(np.random.rand())) + torch.rand_like(x)


def counts(net, x):
    net.calls.add_(1)
    net.first.weight.requires_grad_(net.calls.numel() > 1)
    return x * net.calls


def merges(net, training):
    """LoRA's way: another mode has other weights, changed in place."""
    if hasattr(net, "merged") and net.merged == training:
        net.first.weight.data += 1 if net.merged else -1
        net.merged = not training


def freezes(net, training):
    for parameter in net.parameters():
        parameter.requires_grad = False


def captures(net, x):
    """The way of transformers 5: hidden states are read by hooks that the first call puts there."""
    if not net.installed:
        net.first.register_forward_hook(lambda module, args, output: net.captured.append(output))
        net.second.register_forward_pre_hook(lambda module, args, calls=net.calls: calls.append(1))
        net.installed = True
        return net.captured_at_first(x)
    return net.captured.pop()


def outside(net):
    """Hooks that write to what the user has: they are not part of the forward pass."""
    net.log = log = []
    net.first.register_forward_hook(lambda module, args, output: log.append(output))
    net.second.register_forward_pre_hook(net.remember)


def setting(**makers):
    return lambda net: [setattr(net, name, make()) for name, make in makers.items()]


def hooked(net):
    net.remember = Remembers()
    outside(net)


class Remembers:
    def __init__(self):
        self.arguments = []

    def __call__(self, module, args):
        self.arguments.append(args)


def raises_late(net, x):
    net.heads.append(x)
    if len(net.heads) > 2:
        raise ValueError("called too often")
    return x


def branches(net, x):
    net.heads.append(x)
    return x if x.sum() > 0 else -x


def in_training(net, x):
    net.heads.append(x)
    return branches(net, x) if net.training else x


MODELS = {
    "frozen containers": lambda: Net(setup=setting(config=lambda: Frozen({"a": [1, 2], "b": Frozen({"c": 3})}))),
    "notes in objects": lambda: Net(notes, setting(notes=Notes, heads=lambda: ([None],))),
    "random numbers": lambda: Net(draws),
    "writes to itself": lambda: Net(counts, setting(calls=lambda: torch.zeros(1))),
    "merges weights": lambda: Net(mode=merges, setup=setting(merged=lambda: False)),
    "freezes weights": lambda: Net(mode=lambda net, training: freezes(net, training) if hasattr(net, "on") else None),
    "hooks outside": lambda: Net(setup=hooked),
    "hooks it needs": lambda: Net(
        captures,
        setting(installed=lambda: False, captured=list, calls=list, captured_at_first=nn.Identity),
    ),
}
FAILING = {
    "branches": lambda: Net(branches, setting(heads=list)),
    "branches in training": lambda: Net(in_training, setting(heads=list)),
    "raises": lambda: Net(raises_late, setting(heads=lambda: [1, 2])),
    "a lock": lambda: Net(notes, setting(notes=Notes, heads=lambda: ([None],), lock=threading.Lock)),
    "hooks and branches": lambda: Net(branches, lambda net: [setting(heads=list)(net), hooked(net)]),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("row", [*MODELS, *FAILING])
def test_everything_is_what_it_was(row, called):
    model = {**MODELS, **FAILING}[row]()
    if called and row != "raises":
        model(image()).sum().backward()
    model.on = True
    example = image()
    before = everything(model)
    if row in FAILING and row != "branches in training":
        with pytest.raises(morphogen.TraceError):
            morphogen.trace(model, example)
    elif row in FAILING:
        morphogen.trace(model, example)
    else:
        net = morphogen.trace(model, example)
        assert [group.name for group in net.groups] == ["first"]
        target = net.subnetwork(width=0.5)
        morphogen.masked_dense(net, target)
        assert everything(model) == before
        morphogen.morph(net, target)
        assert model.first.out_channels == 4
        model(image())
        return
    assert everything(model) == before


def test_the_comparison_sees_what_it_is_for():
    model = Net(notes, setting(notes=Notes, heads=lambda: ([None],)))
    model(image())
    before = everything(model)
    assert everything(model) == before
    changes = (
        lambda: model.notes.seen["shapes"].append(1),
        lambda: model.first.weight.data.add_(1e-3),
        model.second.eval,
        lambda: model.first.bias.requires_grad_(False),
        lambda: torch.rand(1),
        random.random,
        lambda: model.second.register_forward_hook(print),
    )
    for change in changes:
        change()
        after = everything(model)
        assert after != before
        before = after

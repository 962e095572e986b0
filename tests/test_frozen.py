"""Frozen parameters and several optimizers: what is frozen is only ever cut, and comes back as it was."""

import pytest
import torch
from torch.nn import functional as F

import morphogen
from morphogen.methods import build_method

from checks import names_in_groups, perturb
from nets import Residual, Tower, image

EPOCHS, STEPS = 4, 2
FROZEN = ("conv1.", "norm1.", "blocks.2.", "blocks.3.norm.")


class Loop:
    """One optimizer for the head, one for the rest of what is trained, and an average of all."""

    def __init__(self, text, seed=0):
        torch.manual_seed(seed)
        self.model = Tower(4, rate=0.0)
        perturb(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(FROZEN))
        self.begin = {name: p.detach().clone() for name, p in self.model.named_parameters() if not p.requires_grad}
        rest = [p for n, p in self.model.named_parameters() if p.requires_grad and not n.startswith("fc")]
        self.head = torch.optim.SGD(self.model.fc.parameters(), 0.05, momentum=0.9)
        self.rest = torch.optim.AdamW([{"params": rest[:2], "lr": 1e-3}, {"params": rest[2:]}], 1e-2)
        self.ema = torch.optim.swa_utils.AveragedModel(self.model)
        self.x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        self.y = torch.arange(2)
        self.run = morphogen.attach(
            self.model,
            [self.head, self.rest],
            build_method(text),
            example=self.x,
            epochs=EPOCHS,
            steps_per_epoch=STEPS,
            ema=self.ema,
            start_epoch=0,
        )

    def train(self, first=0, until=EPOCHS):
        for epoch in range(first, until):
            torch.manual_seed(epoch)
            self.run.begin_epoch(epoch)
            self.check()
            for _ in range(STEPS):
                loss = F.cross_entropy(self.model(self.x), self.y)
                self.model.zero_grad()
                self.run.penalised(loss).backward()
                self.head.step()
                self.rest.step()
                self.ema.update_parameters(self.model)
        if until == EPOCHS:
            self.run.end()
        self.check()
        return self

    def check(self):
        """What is alive of the frozen tensors is what it was, in the average too, and each optimizer has its own."""
        network = self.run.network
        alive = network.structure.alive_mask(network.current)
        averaged, trained = dict(self.ema.module.named_parameters()), set()
        for name, parameter in self.model.named_parameters():
            assert parameter.requires_grad == (not name.startswith(FROZEN)), name
            if parameter.requires_grad:
                trained.add(name)
                continue
            assert not name.endswith("rezero")  # a factor that is not trained would stay 0
            expected = self.begin[name]
            for dim, axis in enumerate(network.structure.tensors[name].axes):
                if axis is not None:
                    expected = expected.index_select(dim, alive[axis].nonzero().flatten())
            assert torch.equal(parameter, expected) and torch.equal(averaged[name], expected), name
        head, (low, high) = names_in_groups(self.model, self.head), names_in_groups(self.model, self.rest)
        assert head == [["fc.weight", "fc.bias"]]
        assert {*low} <= {"blocks.0.conv.weight", "blocks.0.conv.bias", "blocks.0.norm.weight"}
        assert {*low, *high} == trained - {*head[0]} and len(low) + len(high) == len({*low, *high})
        assert [group["lr"] for group in self.rest.param_groups] == [1e-3, 1e-2]


METHODS = {
    "width": "NetworkExpansion(stages=3)",
    "width by copies": "Net2Net(stages=3)",
    "depth": "NetworkExpansion(depth=0.5, stages=2, depth_operator='interpolate')",
    "depth with factors": "Prog(stages=3, depth_operator='rezero')",
    "momentum growth": "Prog(stages=3)",
    "width and depth": "NetworkExpansion(width=0.5, depth=0.5, stages=3)",
}


@pytest.mark.parametrize("name", METHODS)
def test_what_is_frozen_stays_and_comes_back(name):
    loop = Loop(METHODS[name])
    small = loop.run.network.current
    loop.train()
    assert small != loop.run.network.current == loop.run.network.dense
    assert all(torch.equal(dict(loop.model.named_parameters())[n], p) for n, p in loop.begin.items())


def test_what_is_frozen_is_pruned_only_where_it_is_sparse_too():
    model = Residual()
    model.conv1.requires_grad_(False)
    with torch.no_grad():  # channels 3 and 5 are read by nobody, but only 5 is written by nobody
        model.conv2.weight[:, [3, 5]] = 0
        model.conv1.weight[5] = 0
    begin = model.conv1.weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3, momentum=0.9)
    method = morphogen.PruneTrain(interval=1, threshold=1e-9)
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=2, start_epoch=0)
    run.penalised(F.cross_entropy(model(image()), torch.arange(2))).backward()
    model.conv2.weight.grad[:, 3] = 0
    optimizer.step()
    run.begin_epoch(1)
    assert run.network.current.channels["conv1"] == tuple(i for i in range(12) if i != 5)
    kept = torch.cat([begin[:5], begin[6:]])
    assert torch.equal(model.conv1.weight, kept) and not model.conv1.weight.requires_grad


@pytest.mark.parametrize("name", ["width", "momentum growth"])
def test_a_run_that_goes_on_has_the_frozen_weights_of_the_first(name):
    expected = Loop(METHODS[name]).train()
    state = Loop(METHODS[name]).train(until=2).run.state_dict()
    resumed = Loop(METHODS[name], seed=7)
    resumed.run.load_state_dict(state)
    resumed.begin = expected.begin
    resumed.train(first=2)
    found, wanted = resumed.model.state_dict(), expected.model.state_dict()
    assert found.keys() == wanted.keys()
    assert [n for n in wanted if not torch.equal(found[n], wanted[n])] == []


def test_a_run_with_other_frozen_parameters_is_refused():
    def attached(frozen):
        model = Residual()
        model.conv1.requires_grad_(not frozen)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return morphogen.attach(model, optimizer, build_method(METHODS["width"]), example=image(), epochs=EPOCHS)

    message = "other parameters frozen; expected the same requires_grad as when it was attached"
    for frozen in (False, True):
        with pytest.raises(morphogen.CheckpointError, match=message):
            attached(not frozen).load_state_dict(attached(frozen).state_dict())


def test_what_is_trained_again_grows_like_the_rest():
    model = Residual()
    model.conv1.requires_grad_(False)
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    model.conv1.requires_grad_(True)
    with torch.no_grad():
        model.conv1.weight.fill_(2.0)
    morphogen.morph(net, net.dense, operator="replicate")
    assert bool((model.conv1.weight == 2.0).all())


def test_what_is_frozen_is_not_divided_among_copies():
    """Net2Net divides the weights that read copies; those of a frozen layer come back as they were."""
    model = Residual()
    model.conv2.requires_grad_(False)
    ema = torch.optim.swa_utils.AveragedModel(model)
    begin = model.conv2.weight.clone()
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5), ema=ema)
    morphogen.morph(net, net.dense, ema=ema, operator="net2net")
    assert torch.equal(model.conv2.weight, begin) and torch.equal(ema.module.conv2.weight, begin)

"""Stacks of code that adds the residual in its own loop: what they are, what they compute, and what is none."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen
from loops import LOOPS, Added, Branch, Loop, NormFirst, Pairs
from morphogen.dense.bypass import Bypass
from morphogen.graph.watch import watch
from morphogen.pruning.sparsity import sparse_part

from checks import assert_optimizer_holds_model, randomise_statistics, take_steps
from nets import image


@pytest.mark.parametrize(
    "net, name, unit, zero",
    [
        ("Added", "blocks", ("blocks.1",), (True,)),
        ("Pairs", "layers", ("layers.1.0", "layers.1.1"), (True, True)),
        ("Twins", "layers", ("layers.1.0", "layers.1.1"), (True, True)),
        ("Zipped", "mixes+feeds", ("mixes.1", "feeds.1"), (True, True)),
        ("Behind", "mixes+feeds", ("mixes.1", "feeds.1"), (True, True)),
        ("NormFirst", "layers", ("layers.1.0", "layers.1.1"), (False, True)),
        ("Alternating", "layers", ("layers.2", "layers.3"), (True, True)),
        ("Inside", "blocks", ("blocks.1",), (False,)),
    ],
)
def test_a_unit_is_a_turn_of_the_loop(net, name, unit, zero):
    (stack,) = morphogen.trace(LOOPS[net](), image()).stacks
    assert (stack.name, stack.size, stack.units[1]) == (name, 4, unit)
    assert tuple(hands_on.zero for hands_on in stack.hands_on) == zero
    assert stack.writers is not None and len(stack.bottlenecks) == 4


@pytest.mark.parametrize("name", LOOPS)
def test_with_units_out_it_computes_what_a_shallow_network_computes(name):
    torch.manual_seed(0)
    model = LOOPS[name]()
    randomise_statistics(model)
    shallow = LOOPS[name](2)
    x = image()
    net = morphogen.trace(model, x)
    stack = net.stacks[0]
    shallow_stack = morphogen.trace(shallow, image()).stacks[0]
    optimizer = torch.optim.AdamW(model.parameters())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    morphogen.morph(net, net.subnetwork(blocks={stack.name: (1, 3)}), optimizer=optimizer)
    renamed = {
        theirs + key[len(mine) :]: value
        for new, old in enumerate((1, 3))
        for mine, theirs in zip(stack.units[old], shallow_stack.units[new], strict=True)
        for key, value in state.items()
        if key.startswith(mine + ".")
    }
    shallow.load_state_dict({**{k: v for k, v in state.items() if k in shallow.state_dict()}, **renamed})
    assert torch.equal(model.eval()(x), shallow.eval()(x))
    model.train()
    take_steps(model, optimizer, image())
    assert_optimizer_holds_model(model, optimizer)
    morphogen.morph(net, net.dense, optimizer=optimizer)
    LOOPS[name]().load_state_dict(model.state_dict())


def test_a_pair_whose_layers_are_empty_is_pruned_and_the_function_stays():
    torch.manual_seed(0)
    model = Pairs().double()
    x = image().double()
    net = morphogen.trace(model, x)
    with torch.no_grad():
        for branch in model.layers[2]:
            for parameter in branch.parameters():
                parameter.zero_()
    model.eval()
    before = model(x)
    left = sparse_part(net, 1e-4)
    assert left.blocks == {"layers": (0, 1, 3)}
    morphogen.morph(net, left)
    assert torch.equal(before, model(x)) and isinstance(model.layers[2][0], Bypass)


@pytest.mark.parametrize("name", ["Added", "Pairs", "Zipped"])
def test_a_run_of_depth_resumes_bit_for_bit(name):
    x = image()

    def begin():
        torch.manual_seed(0)
        model = LOOPS[name]()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        method = morphogen.NetworkExpansion(depth=0.5, stages=2, depth_operator="identity")
        run = morphogen.attach(
            model, optimizer, method, example=image(), epochs=4, steps_per_epoch=2, batch_size=2, hooks=False
        )
        return model, optimizer, run

    def train(model, optimizer, run, epochs):
        for epoch in epochs:
            torch.manual_seed(epoch)
            run.begin_epoch(epoch)
            for _ in range(2):
                take_steps(model, optimizer, run.begin_step(x), steps=1, run=run)
                run.end_step()

    whole = begin()
    train(*whole, range(3))
    first = begin()
    train(*first, range(1))
    again = begin()
    again[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    train(*again, range(1, 3))
    for key, value in whole[0].state_dict().items():
        assert torch.equal(value, again[0].state_dict()[key]), key


def test_an_elastic_supernet_runs_units_as_a_morph_would_take_them_out():
    torch.manual_seed(0)
    x = image()
    model = Pairs().eval()
    net = morphogen.trace(model, x)
    part = net.subnetwork(blocks={"layers": (0, 2)})
    supernet = morphogen.ElasticSupernet(net, [part])
    supernet.run_as(0)
    elastic = model(x)
    supernet.close()
    morphogen.morph(net, part)
    assert torch.equal(elastic, model(x))


class Parallel(Loop):
    """Branches of one input, summed: no depth."""

    def make(self, depth):
        self.experts = nn.ModuleList(Branch() for _ in range(depth))

    def loop(self, x):
        y = torch.zeros_like(x)
        for expert in self.experts:
            y = y + expert(x)
        return y


class Heads(Loop):
    """Each reads the same."""

    def make(self, depth):
        self.heads = nn.ModuleList(Branch() for _ in range(depth))

    def loop(self, x):
        return torch.stack([head(x) for head in self.heads]).mean(0)


class NotResidual(Loop):
    """What is added to is no longer what came in."""

    def make(self, depth):
        self.blocks = nn.ModuleList(Branch() for _ in range(depth))

    def loop(self, x):
        for block in self.blocks:
            x = F.gelu(x) + block(x)
        return x


class SharedBlock(Loop):
    """One block at all places."""

    def make(self, depth):
        block = Branch()
        self.blocks = nn.ModuleList(block for _ in range(depth))

    def loop(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


class ReadOutside(Added):
    """The loop reads a parameter that lies in the unit."""

    def make(self, depth):
        def layer():
            layer = nn.ModuleList([Branch()])
            layer.gain = nn.Parameter(torch.ones(8, 1, 1))
            return layer

        self.layers = nn.ModuleList(layer() for _ in range(depth))

    def loop(self, x):
        for layer in self.layers:
            x = x + layer.gain * layer[0](x)
        return x


@pytest.mark.parametrize("net", [Parallel, Heads, NotResidual, SharedBlock, ReadOutside])
def test_what_is_no_depth_is_no_stack(net):
    assert not morphogen.trace(net(), image()).stacks


class LaterStages(Loop):
    """The first layer changes the size; the others follow."""

    def make(self, depth):
        self.blocks = nn.ModuleList(Branch() for _ in range(depth))
        self.blocks[0].conv.stride = 2

    def loop(self, x):
        for i, block in enumerate(self.blocks):
            x = block(x) if i == 0 else x + block(x)
        return x


class PostNorm(NormFirst):
    """The norm on the stream: such a unit can leave, but not be silent."""

    def loop(self, x):
        for norm, branch in self.layers:
            x = norm(x + branch(x))
        return x


def test_a_first_layer_that_differs_stays():
    network = morphogen.trace(LaterStages(), image())
    assert [(stack.name, stack.size) for stack in network.stacks] == [("blocks.1..3", 3)]


def test_a_norm_on_the_stream_cannot_be_silenced():
    (stack,) = morphogen.trace(PostNorm(), image()).stacks
    assert stack.size == 4 and stack.writers is None
    assert tuple(hands_on.zero for hands_on in stack.hands_on) == (True, False)  # in the order of their calls
    assert stack.units[0] == ("layers.0.1", "layers.0.0")


class Appending(nn.Module):
    """Each turn of the loop appends to the list that it is given (EfficientDet's pyramids)."""

    class Level(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, maps):
            maps.append(self.conv(maps[0]) + maps[1])
            return maps[1:]

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.levels = nn.ModuleList(self.Level() for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        maps = [x, torch.relu(x)]
        for level in self.levels:
            maps = level(maps)
        return self.head(maps[0] + maps[1])


def test_blocks_that_append_to_the_list_they_are_given():
    model, images = Appending().eval(), torch.randn(2, 3, 8, 8)
    net = morphogen.trace(model, images)
    seen = watch(net.fake)
    assert [len(block.taken) for block in seen.blocks if block.path == "levels.1"] == [2]
    assert all(len(block.taken) == len(block.inputs) for block in seen.blocks)
    morphogen.morph(net, net.subnetwork(width=0.5))
    assert model.levels[1].conv.weight.shape == (4, 4, 3, 3)
    morphogen.morph(net, net.dense)
    assert model(images).shape == (2, 2, 8, 8)


def test_blocks_that_a_list_holds_too_are_out_of_both():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks, self.by_name, self.head = nn.Conv2d(3, 8, 3), [], {}, nn.Linear(8, 3)
            for i in range(4):
                self.add_module(f"block{i}", Inner())
                self.blocks.append(getattr(self, f"block{i}"))
                self.by_name[f"{i}"] = self.blocks[-1]

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((2, 3)))

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x).relu()

    model, x = Listed(), image()
    before = list(model.blocks)
    net = morphogen.trace(model, x)
    (stack,) = net.stacks
    dense = model(x)
    morphogen.morph(net, net.subnetwork(depth=0.5))
    for i, block in enumerate(model.blocks):
        assert block is model.get_submodule(f"block{i}") is model.by_name[f"{i}"]
        assert isinstance(block, Bypass) == (i not in net.current.blocks[stack.name])
    assert not torch.equal(model(x), dense)
    morphogen.morph(net, net.dense)
    assert model.blocks == before and model(x).shape == (2, 3)

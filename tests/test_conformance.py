"""What holds for every operator and every method."""

import copy
from itertools import product

import pytest
import torch

import morphogen
from loops import LOOPS
from morphogen.dense.depth import nested
from morphogen.methods import METHODS as REGISTERED_METHODS
from morphogen.morph.entry import DEPTH_OPERATORS as REGISTERED_DEPTH_OPERATORS
from morphogen.morph.growth import OPERATORS as REGISTERED_OPERATORS
from morphogen.parts import Average, Choose

from checks import (
    assert_optimizer_holds_model,
    assert_survivors_equal,
    perturb,
    randomise_statistics,
    snapshot,
    take_steps,
)
from conformance import ALL, DEPTH_OPERATORS, METHODS, OPERATORS
from nets import NETS, Block, DropPath, Tower, image
from nightly import often
from planted import Planted, plant_times, steps_of


def test_the_table_is_complete(tmp_path, monkeypatch):
    plant_times(monkeypatch)
    assert {(row.name, row.preserves_function, row.rescales) for row in OPERATORS} == {
        (name, entry.preserving, entry.rescales) for name, entry in REGISTERED_OPERATORS.items()
    }
    assert {row.name for row in DEPTH_OPERATORS} == set(REGISTERED_DEPTH_OPERATORS)
    assert {type(row.made(tmp_path)) for row in METHODS} == {*REGISTERED_METHODS.values(), morphogen.Combined}


@pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
@pytest.mark.parametrize("name", NETS)
def test_operator_carries_fills_and_is_repeatable(row, name):
    def grow():
        torch.manual_seed(1)
        model = NETS[name]()
        optimizer = torch.optim.Adam(model.parameters())
        net = morphogen.trace(model, image())
        half, most = net.subnetwork(width=0.5), net.subnetwork(width=0.75)
        morphogen.morph(net, half, optimizer=optimizer, operator=row.name)  # `restore` keeps what leaves
        take_steps(model, optimizer, image())
        before = snapshot(model, optimizer)
        generator = torch.Generator().manual_seed(3)
        receipt = morphogen.morph(net, most, optimizer=optimizer, operator=row.name, generator=generator)
        return net, optimizer, half, before, receipt

    net, optimizer, half, before, receipt = grow()
    after = snapshot(net.model, optimizer)
    assert_survivors_equal(net, before, half, net.current, after, rescaled=row.rescales)
    assert_optimizer_holds_model(net.model, optimizer)
    assert receipt.new > 0 and receipt.before == half and receipt.after == net.current
    assert all(value.isfinite().all() for value in after.values())
    again = snapshot(grow()[0].model)
    assert all(torch.equal(after[key], value) for key, value in again.items() if "/" not in key)
    take_steps(net.model, optimizer, image())


@pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
def test_operator_keeps_or_changes_the_function_as_declared(row):
    model = Tower().double()
    randomise_statistics(model)
    x = image().double()
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5), operator=row.name)
    model.eval()
    with torch.no_grad():
        before = model(x)
        morphogen.morph(net, net.dense, operator=row.name)
        assert torch.allclose(before, model(x), atol=1e-8) == row.preserves_function


CHANGING = "identity", "rezero", "mogrow"
"""Tried on every loop in every run: blocks that are turned off, that get a factor, that come from the average."""


@pytest.mark.parametrize(
    ("row", "loop"),
    often(product(DEPTH_OPERATORS, LOOPS), lambda case: case[0].name in CHANGING or case[1] == "Inside"),
    ids=lambda each: getattr(each, "name", each),
)
def test_depth_operator_fills_carries_and_keeps_or_changes_the_function_as_declared(row, loop):
    torch.manual_seed(0)
    model = LOOPS[loop](9).double()
    randomise_statistics(model)
    optimizer = torch.optim.Adam(model.parameters())
    x = image().double()
    net = morphogen.trace(model, x)
    table = REGISTERED_DEPTH_OPERATORS[row.name].table
    (stack,) = net.stacks
    six, nine = ({stack.name: alive} for alive in nested([6, 9], table))
    morphogen.morph(net, net.subnetwork(blocks=six), optimizer=optimizer, depth_operator=row.name)
    take_steps(model, optimizer, x)
    old = [copy.deepcopy(model.unit(i)) for i in six[stack.name]]
    momentum = morphogen.MomentumNetwork(model, decay=0.5)
    perturb(momentum.module)
    average = [copy.deepcopy(momentum.module.unit(i)) for i in six[stack.name]]
    before = snapshot(model, optimizer)
    model.eval()
    with torch.no_grad():
        output = model(x)
        receipt = morphogen.morph(
            net, net.subnetwork(blocks=nine), optimizer=optimizer, depth_operator=row.name, momentum=momentum
        )
        assert torch.allclose(output, model(x), atol=1e-8) == row.preserves_function
    for i, source in enumerate(row.sources):
        if source is not None:
            for mine, theirs in zip(model.unit(i), (average if i in row.averaged else old)[source], strict=True):
                if hasattr(mine, "conv"):
                    assert torch.equal(mine.conv.weight, theirs.conv.weight), i
                    assert torch.equal(mine.norm.running_mean, theirs.norm.running_mean), i
    if row.averaged != ALL:
        assert_survivors_equal(net, before, receipt.before, net.current, snapshot(model, optimizer))
    assert_optimizer_holds_model(model, optimizer)
    for name, tensor in [*momentum.module.named_parameters(), *momentum.module.named_buffers()]:
        assert torch.equal(tensor, dict([*model.named_parameters(), *model.named_buffers()])[name])  # begins anew
    take_steps(model, optimizer, x)


@pytest.mark.parametrize(
    ("row", "hooks"),
    often(product(METHODS, (True, False)), lambda case: case[1] or METHODS.index(case[0]) % 4 == 0),
    ids=lambda each: getattr(each, "name", each),
)
def test_method_follows_its_schedule_and_replays(row, hooks, tmp_path, monkeypatch):
    plant_times(monkeypatch)
    method = row.made(tmp_path)
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    fresh = Tower().state_dict()
    probe = Planted(model, row.found, batches=2).probe
    run = morphogen.attach(
        model, optimizer, method, example=image(), epochs=8, steps_per_epoch=9, probe=probe, batch_size=2, hooks=hooks
    )
    seen, morphed, epoch = [], [], 0
    while epoch < 8:
        run.begin_epoch(epoch)
        blocks = sum(isinstance(block, Block) for block in model.blocks)
        height, width = run.network.current.resolution
        assert height == width
        seen.append((model.conv1.out_channels, blocks, height))
        morphed += seen[-1:] * (len(run.history) - len(morphed))
        for _ in range(steps_of(run)):
            take_steps(model, optimizer, image() if hooks else run.begin_step(image()), steps=1, run=run)
            if not hooks:
                run.end_step()
        assert_optimizer_holds_model(model, optimizer)
        alive = [block for block in model.blocks if isinstance(block, Block)]
        rates = [block.drop_path.drop_prob for block in alive if isinstance(block.drop_path, DropPath)]
        assert rates == pytest.approx([0.3 * (i + 1) / max(1, blocks - 1) for i in range(blocks - 1)])
        epoch = run.next_epoch(epoch)
    model.eval().state_dict()  # epochs had fewer steps than were told of, so that only this shows the end
    assert run.ended == hooks
    run.end()
    assert seen == list(zip(row.channels, row.blocks, row.side, strict=True))
    search, average = run.part(Choose), run.part(Average)
    assert len(search.searches if search else ()) == len(row.found)
    assert (average is None or average.network is None) and (search is None or search.searching is None)
    if row.channels[-1] < 12:
        assert run.network.current == run.stages[-1].subnetwork != run.network.dense
    else:
        assert {name: value.shape for name, value in model.state_dict().items()} == {
            name: value.shape for name, value in fresh.items()
        }
        Tower().load_state_dict(model.state_dict())
    # The history replays the run.
    again = morphogen.trace(Tower(), image())
    history = [morphogen.SubNetwork.from_json(s.to_json()) for _, s in run.history]
    for subnetwork, (channels, blocks, _) in zip(history, morphed, strict=True):
        morphogen.morph(again, subnetwork)
        assert again.model.conv1.out_channels == channels
        assert sum(isinstance(block, Block) for block in again.model.blocks) == blocks
    assert again.current == run.network.current

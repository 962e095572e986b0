"""What holds for every operator and every method."""

import pytest
import torch

import morphogen
from morphogen.methods import METHODS as REGISTERED_METHODS
from morphogen.morph.growth import OPERATORS as REGISTERED_OPERATORS

from checks import assert_optimizer_holds_model, assert_survivors_equal, randomise_statistics, snapshot, take_steps
from conformance import METHODS, OPERATORS
from nets import NETS, Residual, image


def test_the_table_is_complete():
    assert {row.name for row in OPERATORS} == set(REGISTERED_OPERATORS)
    assert {type(row.method) for row in METHODS} == set(REGISTERED_METHODS.values())


@pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
@pytest.mark.parametrize("name", NETS)
def test_operator_carries_fills_and_is_repeatable(row, name):
    def grow():
        torch.manual_seed(1)
        model = NETS[name]()
        optimizer = torch.optim.Adam(model.parameters())
        net = morphogen.trace(model, image())
        half, most = net.subnetwork(width=0.5), net.subnetwork(width=0.75)
        morphogen.morph(net, half, optimizer=optimizer)
        take_steps(model, optimizer, image())
        before = snapshot(model, optimizer)
        generator = torch.Generator().manual_seed(3)
        receipt = morphogen.morph(net, most, optimizer=optimizer, operator=row.name, generator=generator)
        return net, optimizer, half, before, receipt

    net, optimizer, half, before, receipt = grow()
    after = snapshot(net.model, optimizer)
    assert_survivors_equal(net, before, half, net.current, after)
    assert_optimizer_holds_model(net.model, optimizer)
    assert receipt.new > 0 and receipt.before == half and receipt.after == net.current
    assert all(value.isfinite().all() for value in after.values())
    again = snapshot(grow()[0].model)
    assert all(torch.equal(after[key], value) for key, value in again.items() if "/" not in key)
    take_steps(net.model, optimizer, image())


@pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
def test_operator_keeps_or_changes_the_function_as_declared(row):
    model = Residual().double()
    randomise_statistics(model)
    x = image().double()
    net = morphogen.trace(model, x)
    morphogen.morph(net, net.subnetwork(width=0.5))
    model.eval()
    with torch.no_grad():
        before = model(x)
        morphogen.morph(net, net.dense, operator=row.name)
        assert torch.allclose(before, model(x), atol=1e-8) == row.preserves_function


@pytest.mark.parametrize("row", METHODS, ids=lambda row: repr(row.method))
def test_method_follows_its_schedule_and_replays(row):
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    fresh = Residual().state_dict()
    run = morphogen.attach(model, optimizer, row.method, example=image(), epochs=8)
    widths = []
    for epoch in range(8):
        run.begin_epoch(epoch)
        widths.append(model.conv1.out_channels)
        take_steps(model, optimizer, image(), steps=1)
        assert_optimizer_holds_model(model, optimizer)
    assert tuple(widths) == row.channels
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in fresh.items()
    }
    Residual().load_state_dict(model.state_dict())
    # The history replays the run.
    again = morphogen.trace(Residual(), image())
    for epoch, subnetwork in [(e, morphogen.SubNetwork.from_json(s.to_json())) for e, s in run.history]:
        morphogen.morph(again, subnetwork)
        assert again.model.conv1.out_channels == widths[epoch]
    assert again.current == again.dense

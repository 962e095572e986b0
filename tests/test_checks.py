"""Each shared check fails on a planted defect (invariant 7)."""

import pytest
import torch

import morphogen

from checks import (
    assert_equals_masked_dense,
    assert_optimizer_holds_model,
    assert_survivors_equal,
    masked_dense,
    randomise_statistics,
    snapshot,
    take_steps,
)
from nets import NETS, Residual, image


def test_masked_dense_notices_a_wrong_running_mean():
    model = Residual()
    randomise_statistics(model)
    net = morphogen.trace(model, image())
    half = net.subnetwork(width=0.5)
    expected = masked_dense(net, half).eval()
    morphogen.morph(net, half)
    model.eval()
    model.bn1.running_mean += 0.1
    x = image()
    with pytest.raises(AssertionError), torch.no_grad():
        torch.testing.assert_close(model(x), expected(x))


def test_masked_dense_notices_a_group_norm():
    """Statistics over channels differ when channels go: the check must see it."""
    net = morphogen.trace(NETS["Mixed"](), image())
    with pytest.raises(AssertionError):
        assert_equals_masked_dense(net, net.subnetwork(width=0.5), image())


def test_optimizer_check_notices_a_stale_parameter():
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.conv1.weight = torch.nn.Parameter(model.conv1.weight.detach().clone())
    with pytest.raises(AssertionError):
        assert_optimizer_holds_model(model, optimizer)


def test_optimizer_check_notices_a_stale_moment():
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters())
    take_steps(model, optimizer, image())
    optimizer.state[model.conv1.weight]["exp_avg"] = torch.zeros(3)
    with pytest.raises(AssertionError):
        assert_optimizer_holds_model(model, optimizer)


@pytest.mark.parametrize(
    "key", ["conv1.weight", "conv1.weight/exp_avg", "conv1.weight/grad", "bn1.running_var", "fc.bias"]
)
def test_survivor_check_notices_one_changed_entry(key):
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters())
    take_steps(model, optimizer, image())
    net = morphogen.trace(model, image())
    half = net.subnetwork(width=0.5)
    before = snapshot(model, optimizer)
    morphogen.morph(net, half, optimizer=optimizer)
    after = snapshot(model, optimizer)
    assert_survivors_equal(net, before, net.dense, half, after)
    after[key].view(-1)[0] += 1
    with pytest.raises(AssertionError):
        assert_survivors_equal(net, before, net.dense, half, after)

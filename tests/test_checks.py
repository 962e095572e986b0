"""Each shared check fails on a planted defect (invariant 7)."""

import pytest
import torch

import morphogen

from checks import (
    assert_equals_masked_dense,
    assert_function_preserved,
    assert_optimizer_holds_model,
    assert_survivors_equal,
    assert_unchanged,
    names_in_groups,
    perturb,
    randomise_statistics,
    snapshot,
    take_steps,
)
from nets import NETS, Residual, Tower, image
from planted import Planted, plant_sparse, sized


def test_masked_dense_notices_a_wrong_running_mean():
    model = Residual()
    randomise_statistics(model)
    net = morphogen.trace(model, image())
    half = net.subnetwork(width=0.5)
    expected = morphogen.masked_dense(net, half).eval()
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


@pytest.mark.parametrize("operator", ["replicate", "net2net(noise=0.01)", "random", "orthogonal"])
def test_the_check_of_the_function_notices_an_operator_that_changes_it(operator):
    """`replicate` is `net2net` without its division."""
    net = morphogen.trace(Residual().double(), image().double())
    morphogen.morph(net, net.subnetwork(width=0.5))
    with pytest.raises(AssertionError):
        assert_function_preserved(net, net.dense, image().double(), operator)


@pytest.mark.parametrize("key", ["conv1.weight", "conv2.weight", "bn1.weight", "conv2.weight/exp_avg", "fc.bias"])
def test_survivor_check_notices_one_changed_entry_beside_divided_ones(key):
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters())
    net = morphogen.trace(model, image())
    half = net.subnetwork(width=0.5)
    morphogen.morph(net, half, optimizer=optimizer)
    take_steps(model, optimizer, image())
    before = snapshot(model, optimizer)
    morphogen.morph(net, net.dense, optimizer=optimizer, operator="net2net")
    after = snapshot(model, optimizer)
    assert_survivors_equal(net, before, half, net.dense, after, rescaled=True)
    with pytest.raises(AssertionError):
        assert_survivors_equal(net, before, half, net.dense, after)
    after[key].view(-1)[0] *= 1.01
    with pytest.raises(AssertionError):
        assert_survivors_equal(net, before, half, net.dense, after, rescaled=True)


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


@pytest.mark.parametrize("key", ["blocks.0.conv.weight", "blocks.2.norm.running_var", "blocks.2.conv.bias/exp_avg"])
def test_survivor_check_notices_one_changed_entry_of_a_block(key):
    model = Tower()
    optimizer = torch.optim.Adam(model.parameters())
    net = morphogen.trace(model, image())
    half = net.subnetwork(depth=0.5)  # blocks 0 and 2
    morphogen.morph(net, half, optimizer=optimizer)
    take_steps(model, optimizer, image())
    before = snapshot(model, optimizer)
    morphogen.morph(net, net.dense, optimizer=optimizer)
    after = snapshot(model, optimizer)
    assert_survivors_equal(net, before, half, net.dense, after)
    without = {name: value for name, value in after.items() if not name.startswith("blocks.1.")}
    with pytest.raises(AssertionError):
        assert_survivors_equal(net, before, half, net.dense, without)
    after[key].view(-1)[0] += 1
    with pytest.raises(AssertionError):
        assert_survivors_equal(net, before, half, net.dense, after)


def test_unchanged_check_notices_weights_moments_groups_and_size():
    model = Tower()
    optimizer = torch.optim.Adam(model.parameters())
    net = morphogen.trace(model, image())
    take_steps(model, optimizer, image())
    before = snapshot(model, optimizer)
    assert_unchanged(net, before, net.dense, optimizer)
    for tensor in (model.fc.bias.data, optimizer.state[model.fc.bias]["exp_avg"], model.blocks[1].norm.running_mean):
        kept = tensor.clone()
        tensor[0] += 1
        with pytest.raises(AssertionError):
            assert_unchanged(net, before, net.dense, optimizer)
        tensor.copy_(kept)
        assert_unchanged(net, before, net.dense, optimizer)
    with pytest.raises(AssertionError):
        assert_unchanged(net, before, net.subnetwork(depth=0.5), optimizer)
    optimizer.param_groups[0]["params"].pop()
    with pytest.raises(AssertionError):
        assert_unchanged(net, before, net.dense, optimizer)


def test_names_in_groups_notices_order_and_membership():
    model = Residual()
    parameters = list(model.parameters())
    first = names_in_groups(model, torch.optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:]}], 0.1))
    other = names_in_groups(model, torch.optim.SGD([{"params": parameters[:3]}, {"params": parameters[3:]}], 0.1))
    turned = names_in_groups(model, torch.optim.SGD([{"params": parameters[1::-1]}, {"params": parameters[2:]}], 0.1))
    assert first[0] == ["stem.weight", "bn.weight"] and first != other and first != turned


def test_perturb_leaves_no_constant():
    model = Tower()
    perturb(model)
    assert all(tensor.float().std() > 0 for tensor in model.state_dict().values() if tensor.ndim)


def test_a_planted_search_notices_channels_blocks_and_side():
    model = Tower()
    net = morphogen.trace(model, image())
    assert sized(model, image())[1] == (12, 4, 8) and sized(model, image(size=5))[1] == (12, 4, 5)
    small = morphogen.ElasticSupernet(net, [net.subnetwork(width=0.5, depth=0.5)])
    small.run_as(0)
    assert sized(model, image())[1] == (6, 2, 8)
    small.close()
    planted = Planted(model, [(12, 4, 8)])
    (batch,) = planted.probe.subset
    assert planted.loss(*batch).item() == pytest.approx(0.1)
    for wrong in ((6, 4, 8), (12, 3, 8), (12, 4, 7)):
        planted.best = [wrong]
        assert planted.loss(*batch).item() == 1.0


def test_planted_sparsity_is_in_every_weight_of_what_goes_and_in_nothing_else():
    net = morphogen.trace(Residual(), image())
    plant_sparse(net, net.subnetwork(alive={"conv1": range(1, 12)}))
    zeros = {name: (tensor == 0).sum().item() for name, tensor in net.model.named_parameters() if tensor.ndim > 1}
    assert zeros == {"stem.weight": 0, "conv1.weight": 8 * 9, "conv2.weight": 8 * 9, "fc.weight": 0}
    morphogen.morph(net, net.subnetwork(alive={"conv1": range(6, 12)}))
    plant_sparse(net, net.subnetwork(alive={"conv1": range(8, 12)}), value=2.0)  # by dense position
    (planted,) = {tuple((net.model.conv1.weight == 2).all((1, 2, 3)).tolist())}
    assert planted == (True, True, False, False, False, False)

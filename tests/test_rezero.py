"""ReZero: a factor on each new branch while a stage lasts, and nothing of it afterwards."""

import copy

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3

import morphogen

from checks import assert_optimizer_holds_model, assert_unchanged, perturb, snapshot, take_steps
from nets import Tower, image


def grown(named=False):
    """A tower of six at two blocks, grown to four by ReZero, two steps later."""
    torch.manual_seed(0)
    model = Tower(6).double()
    perturb(model)
    x = image().double()
    optimizer = torch.optim.AdamW(model.named_parameters() if named else model.parameters(), 1e-2)
    ema = ModelEmaV3(model, 0.5)
    net = morphogen.trace(model, x)
    small, middle = net.subnetwork(blocks={"blocks": (0, 3)}), net.subnetwork(blocks={"blocks": (0, 1, 3, 4)})
    morphogen.morph(net, small, optimizer=optimizer, ema=ema)
    take_steps(model, optimizer, x)
    morphogen.morph(net, middle, optimizer=optimizer, ema=ema, depth_operator="rezero")
    return net, optimizer, ema, x


def factors(model):
    return {name: p for name, p in model.named_parameters() if name.endswith("rezero")}


def test_factors_are_trained_folded_and_gone():
    net, optimizer, ema, x = grown(named=True)
    model = net.model
    assert set(factors(model)) == set(factors(ema.module)) == {"blocks.1.norm.rezero", "blocks.4.norm.rezero"}
    assert_optimizer_holds_model(model, optimizer)
    assert all(len(group["params"]) == len(group["param_names"]) for group in optimizer.param_groups)
    take_steps(model, optimizer, x)
    ema.update(model)
    assert all(p.item() != 0 for p in factors(model).values())
    model.eval(), ema.module.eval()
    with torch.no_grad():
        expected = [model(x), ema.module(x)]
        morphogen.morph(net, net.dense, optimizer=optimizer, ema=ema, depth_operator="identity")
        torch.testing.assert_close([model(x), ema.module(x)], expected)
    assert not factors(model) and not factors(ema.module)
    assert_optimizer_holds_model(model, optimizer)
    # The moments of a weight that was scaled are of another scale.
    assert model.blocks[1].norm.weight not in optimizer.state and model.blocks[0].norm.weight in optimizer.state
    take_steps(model, optimizer, x)
    Tower(6).double().load_state_dict(model.state_dict())


def test_a_refused_morph_keeps_the_factors():
    net, optimizer, _, x = grown()
    take_steps(net.model, optimizer, x)

    def fails(entry):
        raise RuntimeError("no")

    before, current = snapshot(net.model, optimizer), net.current
    output = net.model.eval()(x)
    with pytest.raises(RuntimeError, match="no"):
        morphogen.morph(net, net.dense, optimizer=optimizer, depth_operator=fails)
    assert_unchanged(net, before, current, optimizer)
    torch.testing.assert_close(net.model(x), output)
    take_steps(net.model, optimizer, x)
    assert_optimizer_holds_model(net.model, optimizer)


def test_the_end_of_a_run_folds_them():
    model = Tower(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    method = morphogen.NetworkExpansion(depth=0.5, stages=2, depth_operator="rezero")
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=2, start_epoch=0, steps_per_epoch=9)
    run.begin_epoch(1)
    take_steps(model, optimizer, image())
    output = copy.deepcopy(model).eval()(image(1) * 0 + 1)
    assert factors(model)
    run.end()
    torch.testing.assert_close(model.eval()(image(1) * 0 + 1), output)
    Tower(4).load_state_dict(model.state_dict())
    assert_optimizer_holds_model(model, optimizer)


def test_a_factor_follows_the_weight_where_the_bias_is_not_trained():
    model = Tower(4)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith("bias"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(depth=0.5), optimizer=optimizer)
    morphogen.morph(net, net.dense, optimizer=optimizer, depth_operator="rezero")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(id(p) in held for p in factors(model).values()) and len(factors(model)) == 2

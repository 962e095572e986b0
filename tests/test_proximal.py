"""The penalty as a proximal step: exact zeros, and in the long run what the penalty in the loss would do."""

import pytest
import torch

import morphogen
from morphogen import GroupLasso, PruneTrain
from morphogen.parts import Prune
from morphogen.pruning.lasso import Step
from morphogen.pruning.proximal import proximal_steps

from nets import Plain, Residual, image


def lasso_of(model):
    return GroupLasso(morphogen.trace(model, image()))


def norms(weight, dim):
    return weight.detach().transpose(0, dim).flatten(1).norm(dim=1)


def test_a_step_shortens_every_channel_by_as_much_or_to_zero():
    model = Residual().double()
    with torch.no_grad():
        model.fc.weight[:, 3] = 0.001  # of norm 0.001 * sqrt(10)
        model.stem.weight[2] = 0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    lasso = GroupLasso(morphogen.trace(model, image().double()))
    lasso.shrink({name: Step(0.01) for name in lasso.weights})
    expected = (norms(before["fc.weight"], 1) - 0.01).clamp(min=0)
    torch.testing.assert_close(norms(model.fc.weight, 1), expected)
    assert not model.fc.weight[:, 3].any() and not model.stem.weight[2].any()
    both = before["conv1.weight"] * (1 - 0.01 / norms(before["conv1.weight"], 0)).clamp(min=0)[:, None, None, None]
    both = both * (1 - 0.01 / norms(both, 1)).clamp(min=0)[None, :, None, None]
    torch.testing.assert_close(model.conv1.weight, both)
    for name in ("bn.weight", "fc.bias", "conv1.weight"):
        assert model.get_parameter(name).isfinite().all()
    assert torch.equal(model.fc.bias, before["fc.bias"])


def test_a_channel_of_many_positions_shrinks_as_one():
    model = Plain()
    lasso = lasso_of(model)
    before = model.fc.weight.detach().clone().view(10, 16, 16)
    lasso.shrink({name: Step(0.1) for name in lasso.weights})
    kept = 1 - 0.1 / before.transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(model.fc.weight.view(10, 16, 16), before * kept[None, :, None])


def test_zeros_take_no_step_and_nan_does_not_spread():
    model = Residual()
    with torch.no_grad():
        model.fc.weight[:, 0] = 0
        model.fc.weight[:, 1] = float("nan")
    lasso = lasso_of(model)
    lasso.shrink({name: Step(0.0) for name in lasso.weights})
    assert not model.fc.weight[:, 0].any()
    assert model.fc.weight[:, 1].isnan().all() and model.fc.weight[:, 2:].isfinite().all()


@pytest.mark.parametrize(
    "settings, length",
    [
        ({}, 0.03),
        ({"dampening": 0.5}, 0.03),  # PyTorch has it dampen a velocity, or nothing
        ({"momentum": 0.9}, 0.3),
        ({"momentum": 0.9, "nesterov": True}, 0.3),
        ({"momentum": 0.9, "dampening": 0.5}, 0.15),
    ],
)
def test_sgd_shrinks_in_the_long_run_as_the_penalty_in_the_loss(settings, length):
    """With a constant pull a velocity becomes pull (1 - dampening) / (1 - momentum)."""
    weight = torch.nn.Parameter(torch.tensor([100.0]))
    optimizer = torch.optim.SGD([weight], 0.1, **settings)
    for _ in range(200):
        before = weight.item()
        weight.grad = torch.full_like(weight, 0.3)  # lambda times the norm's gradient, which is 1
        optimizer.step()
    (step,) = proximal_steps({"weight": weight}, [optimizer], 0.3).values()
    assert step.scale is None and step.length == pytest.approx(length)
    assert before - weight.item() == pytest.approx(length, rel=1e-3)


def test_adamw_shrinks_by_the_mean_of_what_it_divides_by():
    """A few dead entries must not decide for their channel: with 1 / sqrt(0) among the steps, every mean is large."""
    model = Residual()
    lasso = lasso_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    model.conv1.weight.grad[:, 0] = 0  # reads a channel that is always 0
    before = model.conv1.weight.detach().clone()
    optimizer.step()
    stepped = model.conv1.weight.detach().clone()
    torch.testing.assert_close(stepped[:, 1:], before[:, 1:] - 0.01)
    steps = proximal_steps(lasso.weights, [optimizer], 0.2)
    assert steps["conv1.weight"].length == pytest.approx(0.002)

    def root(square, weight):  # with the mean square of the penalty's own gradient, w / norm
        return (square + 0.2**2 * weight.shape[0] / weight.numel()) ** 0.5

    own, dead = (root(square, model.conv1.weight) for square in (0.25, 0.0))
    torch.testing.assert_close(steps["conv1.weight"].scale[:, 1:], torch.full((12, 7, 3, 3), own))
    # The dead input channel goes at the rate of the mean over all weights.
    weights = list(lasso.weights.values())
    total = sum(weight.numel() * root(0.25, weight) for weight in weights) - 12 * 9 * (own - dead)
    least = total / sum(weight.numel() for weight in weights)
    torch.testing.assert_close(steps["conv1.weight"].scale[:, 0], torch.full((12, 3, 3), least))
    lasso.shrink(steps)
    out = stepped * (1 - 0.002 / ((7 * own + least) / 8) / norms(stepped, 0))[:, None, None, None]
    scales = torch.full((8,), own).index_fill(0, torch.tensor([0]), least)
    expected = out * (1 - 0.002 / scales / norms(out, 1))[None, :, None, None]
    torch.testing.assert_close(model.conv1.weight, expected)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RMSprop])
def test_branches_that_begin_silent_are_not_gone_after_a_step(make):
    """Behind a normalisation that begins at zero no gradient reaches a convolution in the first step."""
    model = Residual()
    torch.nn.init.zeros_(model.bn2.weight)
    optimizer = make(model.parameters(), 1e-3)
    run = morphogen.attach(model, optimizer, PruneTrain(proximal=True), example=image(), epochs=2, start_epoch=0)
    before = model.conv1.weight.detach().norm()
    loss = torch.nn.functional.cross_entropy(model(image(4)), torch.arange(4))
    run.penalised(loss).backward()
    optimizer.step()
    assert run.part(Prune).pruner.coefficient is not None
    assert model.conv1.weight.norm() > 0.5 * before  # RMSprop's first step is ten times as long as its later ones


def test_weights_that_the_loss_hardly_moves_shrink_as_slowly_as_under_the_optimizer():
    """A detector's heads begin small, and what is behind them has next to no gradient. An entry moves by no more than
    the learning rate: Adam's own step, were the penalty alone in the loss."""
    model = Residual()
    lasso = lasso_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-9)
    optimizer.step()
    steps = proximal_steps(lasso.weights, [optimizer], 0.2)
    for name, weight in lasso.weights.items():
        most = 0.01 * (weight.numel() / weight.shape[0]) ** 0.5
        assert float(steps[name].length / steps[name].scale.mean()) <= most * 1.001


def test_the_momentum_of_rmsprop_counts_and_optimizers_without_second_moments_are_refused():
    weight = torch.nn.Parameter(torch.ones(4))
    for momentum, length in ((0.0, 0.1), (0.9, 1.0)):
        optimizer = torch.optim.RMSprop([weight], 0.1, momentum=momentum)
        weight.grad = torch.ones(4)
        optimizer.step()
        assert proximal_steps({"weight": weight}, [optimizer], 1.0)["weight"].length == pytest.approx(length)
    optimizer = torch.optim.Adamax([weight], 0.1)
    optimizer.step()
    with pytest.raises(morphogen.ConfigError, match="Adamax: a proximal step has to know"):
        proximal_steps({"weight": weight}, [optimizer], 1.0)


@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_in_a_loop_it_makes_exact_zeros_and_leaves_the_loss_alone(make, hooks):
    model = Residual()
    optimizer = make(model.parameters(), 0.01)
    method = PruneTrain(ratio=0.5, proximal=True)
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=8, start_epoch=0, hooks=hooks)
    with torch.no_grad():
        model.conv1.weight[4].mul_(1e-3)
        model.conv2.weight[:, 4].mul_(1e-3)
    before = model.conv1.weight.detach().clone()
    with pytest.raises(morphogen.ConfigError, match="this step's loss has no penalty"):
        optimizer.step() if hooks else run.end_step()  # before any loss there is no coefficient, and no step
    assert model.conv1.weight[4].any() and torch.equal(model.conv1.weight, before)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(image(4)), torch.arange(4))
        assert run.penalised(loss) is loss
        optimizer.zero_grad()
        loss.backward()
        model.conv1.weight.grad[4] = model.conv2.weight.grad[:, 4] = 0
        optimizer.step()
        if not hooks:
            run.end_step()
    assert not model.conv1.weight[4].any() and not model.conv2.weight[:, 4].any()
    assert model.conv1.weight[5].any() and all(p.isfinite().all() for p in model.parameters())


def test_what_no_optimizer_trains_stays():
    model = Residual()
    before = model.conv1.weight.detach().clone()
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if n != "conv1.weight"], 0.1)
    lasso = lasso_of(model)
    lasso.shrink(proximal_steps(lasso.weights, [optimizer], 0.1))
    assert torch.equal(model.conv1.weight, before)
    assert (norms(model.fc.weight, 1) > 0).all()

"""Pruning by what a channel really weighs, to a wanted size, and then without a penalty."""

import math

import pytest
import torch
from torch import nn

import morphogen
from morphogen import GroupLasso, PruneTrain
from morphogen.cost.flops import cost
from morphogen.parts import Prune
from morphogen.pruning.folded import folded_weight
from morphogen.pruning.lasso import Step
from morphogen.pruning.policy import Pruning
from morphogen.pruning.proximal import proximal_steps
from morphogen.pruning.sparsity import sparse_part

from nets import Grouped, Residual, SqueezeExcite, deit, image
from planted import plant_sparse

MENDED = {"folded": True, "target": 0.5, "finetune": 0.3, "proximal": True}


class Small(nn.Module):
    """Two 1 x 1 convolutions of two channels with batch norm, and a linear layer; all figures chosen by hand."""

    def __init__(self):
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2, eps=1.0)
        self.two, self.norm2 = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2, eps=1.0)
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.one.weight[:, :, 0, 0] = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
            self.norm1.weight[:] = torch.tensor([2.0, -0.5])
            self.norm1.running_var[:] = torch.tensor([3.0, 3.0])  # a deviation of 2
            self.two.weight[:, :, 0, 0] = torch.tensor([[1.0, 2.0], [2.0, -1.0]])
            self.norm2.weight[:] = torch.tensor([3.0, 4.0])
            self.norm2.running_var[:] = torch.tensor([8.0, 3.0])  # 3 and 2
            self.fc.weight[:] = torch.tensor([[3.0, 0.0], [4.0, 1.0]])

    def forward(self, x):
        return self.fc(self.norm2(self.two(self.norm1(self.one(x)).relu())).relu().mean((2, 3)))


def traced(model):
    return morphogen.trace(model, image().to(next(model.parameters()).dtype))


def by_autograd(lasso):
    """The penalty by PyTorch's own norm and gradient: each deviation in proportion to its filter's size, and the scales
    of a channel group of one size together."""
    model, total = lasso.network.model, 0.0
    structure, together = lasso.network.structure, {}
    for name in lasso.scales:
        units = structure.tensors[name].axes[0]
        group = name if units is None else int(structure.unit_groups()[units.max()])
        together.setdefault(group, []).append(name)
    size_of = {
        name: torch.cat([model.get_parameter(structure.norms[each].scale) for each in names]).norm()
        for names in together.values()
        for name in names
    }
    for name, axes in lasso.axes.items():
        weight = model.get_parameter(name)
        if name in lasso.scales:
            norm, size = lasso.network.structure.norms[name], weight.flatten(1).norm(dim=1)
            share = ((model.get_buffer(norm.variance) + norm.eps).sqrt() / size).detach()
            gamma = model.get_parameter(norm.scale) * (size_of[name].detach() / size_of[name])
            factor = gamma / (share * size)
            weight = weight * factor.view(-1, *[1] * (weight.ndim - 1))
        for axis in axes:
            index = torch.arange(weight.shape[axis.dim]) if axis.index is None else axis.index
            for channel in range(len(axis.units)):
                total = total + weight.index_select(axis.dim, (index == channel).nonzero().flatten()).norm()
    return total


def gradients(model, penalty):
    model.zero_grad()
    penalty.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def test_the_penalty_by_hand():
    model = Small()
    penalty = GroupLasso(traced(model), folded=True)()
    # Folded: filters of norm 2/2 x 5 and 0.5/2 x 2; [[1, 2], [4, -2]]; columns of the linear layer of 5 and 1.
    expected = 5 + 0.5 + math.sqrt(5) + math.sqrt(20) + math.sqrt(17) + math.sqrt(8) + 5 + 1
    assert penalty.item() == pytest.approx(expected, rel=1e-6)
    found = gradients(model, penalty)
    # An output channel pulls at its scale, by the filter's size in deviations: (2.5, -1), of which 5.5 / 4.25 times the
    # scales, (2, -0.5), would shrink both alike. Nothing pulls at the filters.
    torch.testing.assert_close(found["norm1.weight"], torch.tensor([2.5 - 11 / 4.25, -1 + 2.75 / 4.25]))
    assert not found["one.weight"].any()
    torch.testing.assert_close(found["fc.weight"], torch.tensor([[0.6, 0.0], [0.8, 1.0]]))
    plain = GroupLasso(traced(model))().item()
    assert plain == pytest.approx(5 + 2 + 4 * math.sqrt(5) + 5 + 1, rel=1e-6)


def filled(model):
    """Scales of any sign, deviations of any size."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.uniform_(module.running_var, 0.3, 2)
    return model


class Normed(nn.Module):
    """A grouped convolution, whose channels lie in both groups at once, and a linear layer, each with batch norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.two, self.norm2 = nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.BatchNorm2d(12)
        self.hidden, self.norm3, self.fc = nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.norm2(self.two(self.norm(self.stem(x)).relu())).relu().mean((2, 3))
        return self.fc(self.norm3(self.hidden(x)).relu())


@pytest.mark.parametrize("make", [Small, Residual, Grouped, SqueezeExcite, Normed])
def test_the_gradient_is_autograds(make):
    model = filled(make()).double()
    lasso = GroupLasso(traced(model), folded=True)
    assert len(lasso.scales) == sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model.modules())
    torch.testing.assert_close(lasso(), by_autograd(lasso))
    mine, theirs = gradients(model, 3 * lasso()), gradients(model, 3 * by_autograd(lasso))
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-9, atol=1e-12)


def test_a_filters_own_size_means_nothing():
    model = filled(Residual()).double()
    net = traced(model)
    lasso = GroupLasso(net, folded=True)
    before, sparse = lasso(), gradients(model, lasso())["conv1.weight"]
    assert float((sparse * model.conv1.weight).flatten(1).sum(1).abs().max()) < 1e-12 and sparse.any()
    with torch.no_grad():
        model.conv1.weight.mul_(3)
        model.bn1.running_var.add_(model.bn1.eps).mul_(9).sub_(model.bn1.eps)
    torch.testing.assert_close(lasso(), before)


def test_without_batch_norm_behind_it_a_weight_counts_as_it_is():
    net = morphogen.trace(deit(depth=1), image(size=16))
    assert torch.equal(GroupLasso(net, folded=True)(), GroupLasso(net)()) and GroupLasso(net).axes
    model = Residual()
    model.bn1.weight.requires_grad_(False)  # nothing could become zero
    assert set(GroupLasso(traced(model), folded=True).scales) == {"stem.weight", "conv2.weight"}


class Shared(nn.Module):
    """A convolution that runs twice, one whose output is read twice, an activation before the norm, no scale."""

    def __init__(self):
        super().__init__()
        self.twice, self.read, self.before, self.none, self.good = (nn.Conv2d(3, 3, 1) for _ in range(5))
        self.a, self.b, self.c, self.d, self.e = (nn.BatchNorm2d(3) for _ in range(5))
        self.f = nn.BatchNorm2d(3, affine=False)

    def forward(self, x):
        x = self.b(self.twice(self.a(self.twice(x))))
        y = self.read(x)
        x = self.d(self.before(self.c(y) + y).relu())
        return self.e(self.good(self.f(self.none(x)))).mean((2, 3))


def test_which_batch_norms_are_folded_in():
    norms = traced(Shared()).structure.norms
    assert {name: norm.scale for name, norm in norms.items()} == {"good.weight": "e.weight"}


def test_half_precision():
    model = filled(Residual()).bfloat16()
    lasso = GroupLasso(traced(model), folded=True)
    assert lasso().dtype == torch.float32
    found, expected = gradients(model, lasso()), gradients(model.double(), by_autograd(lasso))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name].double(), gradient, rtol=2e-2, atol=1e-2)


# --- the proximal step ---------------------------------------------------------------------------------------


def test_a_proximal_step_by_hand():
    model = Small()
    lasso = GroupLasso(traced(model), folded=True)
    first = model.one.weight.detach().clone()
    lasso.shrink({name: Step(0.1) for name in lasso.trained})
    # As far as the gradient would move them, 0.1 x 2.5 and 0.1 x 1, and back to the size they had; the filters stay.
    same = math.sqrt((2**2 + 0.5**2) / (1.75**2 + 0.4**2))
    torch.testing.assert_close(model.norm1.weight, same * torch.tensor([1.75, -0.4]))
    assert torch.equal(model.one.weight, first)
    gammas = [3 - 0.1 * math.sqrt(5) / 3, 4 - 0.1 * math.sqrt(5) / 2]
    torch.testing.assert_close(model.norm2.weight, 5 / math.hypot(*gammas) * torch.tensor(gammas))
    # Input channel 0 of the second convolution is (f0 x 1, f1 x 2), f = gamma / sigma, and moves at the mean of f^2.
    f0, f1 = gammas[0] / 3, gammas[1] / 2
    kept = []
    for a, b in [(1.0, 2.0), (2.0, -1.0)]:
        squares = (f0 * a) ** 2, (f1 * b) ** 2
        rate = (squares[0] * f0**2 + squares[1] * f1**2) / sum(squares)
        kept.append(1 - 0.1 * rate / math.sqrt(sum(squares)))
    rows = torch.tensor([[kept[0], 2 * kept[1]], [2 * kept[0], -kept[1]]])
    rows *= math.sqrt(5) / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.two.weight[:, :, 0, 0], rows)
    torch.testing.assert_close(model.fc.weight, torch.tensor([[3 * 0.98, 0.0], [4 * 0.98, 0.9]]))


def test_scales_become_exactly_zero_and_stay_numbers():
    model = Small()
    lasso = GroupLasso(traced(model), folded=True)
    lasso.shrink({name: Step(0.6) for name in lasso.trained})
    torch.testing.assert_close(model.norm1.weight, torch.tensor([math.sqrt(4.25), 0.0]))  # 0.5 - 0.6 x 1 is below 0
    lasso.shrink({name: Step(6.0) for name in lasso.trained})
    assert not any(norm.weight.any() for norm in (model.norm1, model.norm2)) and not model.fc.weight.any()
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_steps_are_those_of_the_scales_own_optimizer():
    model = Small()
    lasso = GroupLasso(traced(model), folded=True)
    fast = torch.optim.SGD([model.norm1.weight], 0.5)
    slow = torch.optim.SGD([p for n, p in model.named_parameters() if n != "norm1.weight"], 0.1, momentum=0.9)
    steps = proximal_steps(lasso.trained, [fast, slow], 0.2)
    assert steps["norm1.weight"].length == pytest.approx(0.1)
    assert steps["one.weight"].length == steps["norm2.weight"].length == pytest.approx(0.2)


def test_what_is_sparse_is_judged_folded():
    model = Residual()
    net = traced(model)
    with torch.no_grad():
        model.bn1.weight[[2, 5]] = 0
        model.conv2.weight[:, [2, 5, 7]] = 0
        model.conv1.weight[7] *= 1e-3  # as large as any behind its norm
    left = sparse_part(net, 1e-4, folded=True)
    assert left.channels["conv1"] == tuple(i for i in range(12) if i not in (2, 5))
    assert sparse_part(net, 1e-4) == net.dense
    with torch.no_grad():
        model.bn1.weight.zero_()
        model.conv2.weight.zero_()
    with pytest.warns(UserWarning, match="all channels of conv1 are sparse; the strongest is kept"):
        assert len(sparse_part(net, 1e-4, folded=True).channels["conv1"]) == 1


# --- lambda, and the last part of the run ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "left, epoch, factor",
    [  # from 1.0 before epoch 2 to 0.4 before epoch 12: 0.88 is wanted before epoch 4, 0.7 before epoch 7
        (0.88, 4, 1.0),
        (0.93, 4, math.sqrt(1.3)),
        (0.98, 4, 1.3),
        (1.0, 7, 1.3),
        (0.65, 7, 1 / math.sqrt(1.3)),
        (0.45, 7, 1 / 1.3),
        (0.4, 7, 0.0),
        (0.3, 12, 0.0),
        (0.45, 12, math.sqrt(1.3)),
    ],
)
def test_the_controller_by_hand(left, epoch, factor):
    policy = Pruning(0.25, (4, 7, 12), start=2, stop=12, target=0.4)
    assert policy.steered(0.01, left, epoch) == pytest.approx(0.01 * factor, rel=1e-9)
    assert Pruning(0.25, (4, 7, 12), start=2, stop=12).steered(0.01, left, epoch) == 0.01


def make_sparse(run, **alive):
    """Plant zeros in the dense channels of these groups that are not named."""
    net = run.network
    plant_sparse(net, net.subnetwork(alive={name: list(units) for name, units in alive.items()}))


def attached(model, epochs, **settings):
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    method = PruneTrain(**{**MENDED, **settings})
    return morphogen.attach(model, optimizer, method, example=image(), epochs=epochs, start_epoch=0)


def test_a_run_is_steered_and_ends_without_a_penalty():
    model = Residual()
    run = attached(model, 10, interval=2, target=0.55, proximal=False)
    prune, loss, seen = run.part(Prune), torch.tensor(1.0), []
    assert prune.policy.at == (2, 4, 6, 7)
    for epoch in range(10):
        if epoch in (4, 8):
            make_sparse(run, conv1=range(6))
        run.begin_epoch(epoch) if epoch else None
        seen.append((model.conv1.out_channels, run.penalised(loss) is not loss))
        if epoch == 0:
            first = prune.pruner.coefficient
        if epoch == 2:  # of 7 epochs 2 are over: 1 - 0.45 x 2 / 7 = 0.87 were wanted, all are left
            assert prune.pruner.coefficient == pytest.approx(1.3 * first)
        if epoch == 4:  # 0.74 were wanted; per position 216 + 2 x 72 x 6 of 216 + 2 x 72 x 12 are left, 0.56
            flops = [cost(run.network, each).forward for each in (run.network.current, run.network.dense)]
            assert flops == [2 * (64 * 1080 + 80), 2 * (64 * 1944 + 80)]
            assert prune.pruner.coefficient == pytest.approx(first)
    assert seen == [(12, True)] * 4 + [(6, True)] * 3 + [(6, False)] * 3
    assert run.end() is None and model.conv1.out_channels == 6


def test_with_the_target_reached_the_penalty_is_over():
    run = attached(Residual(), 10, interval=1)
    run.penalised(torch.tensor(1.0))
    make_sparse(run, conv1=range(3))
    run.begin_epoch(1)
    assert run.part(Prune).pruner.coefficient == 0
    before = {name: p.detach().clone() for name, p in run.network.model.named_parameters()}
    run.penalised(torch.tensor(1.0))
    run.part(Prune).end_step()
    assert all(torch.equal(p, before[name]) for name, p in run.network.model.named_parameters())


def test_a_target_that_is_missed_is_told():
    run = attached(Residual(), 10, interval=7)
    run.penalised(torch.tensor(1.0))
    with pytest.warns(UserWarning, match="ends with 100% of the FLOPs left, and 50% were wanted; a larger ratio"):
        run.begin_epoch(7)


def test_what_has_been_pruned_stays_pruned_when_growth_goes_on():
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    method = morphogen.ProgressiveResizing(stages=2) + PruneTrain(**MENDED, interval=1)
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=4, start_epoch=0)
    run.penalised(torch.tensor(1.0))
    make_sparse(run, conv1=range(3))
    sizes = []
    for epoch in range(1, 4):
        run.begin_epoch(epoch)
        sizes.append((model.conv1.out_channels, run.network.current.resolution))
        run.penalised(torch.tensor(1.0))
    assert sizes == [(3, (4, 4)), (3, (8, 8)), (3, (8, 8))]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_in_a_loop_scales_become_exactly_zero(make):
    """Channels that nothing needs go, whatever the size of their filters."""
    torch.manual_seed(0)
    model = Residual()
    optimizer = make(model.parameters(), 0.02)
    method = PruneTrain(**{**MENDED, "target": None}, ratio=0.7, interval=1)
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=10, start_epoch=0)
    with torch.no_grad():
        model.conv1.weight[4].mul_(100)
        model.bn1.weight[4] = 0.01
        model.conv2.weight[:, 4].mul_(1e-5)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(image(4)), torch.arange(4))
        assert run.penalised(loss) is loss
        optimizer.zero_grad()
        loss.backward()
        model.bn1.weight.grad[4] = 0
        model.conv2.weight.grad[:, 4] = 0
        optimizer.step()
    assert model.bn1.weight[4] == 0 and not folded_weight(run.network, "conv2.weight")[:, 4].any()
    assert all(p.isfinite().all() for p in model.parameters())
    run.begin_epoch(1)
    assert 4 not in run.network.current.channels["conv1"]


def test_a_target_that_is_passed_by_far_is_told():
    run = attached(Residual(), 10, interval=2, target=0.9)
    run.begin_epoch(0)
    run.penalised(torch.tensor(1.0))
    make_sparse(run, conv1=range(3))
    with pytest.warns(UserWarning, match="and 90% were wanted; a smaller ratio prunes less"):
        for epoch in range(1, 10):
            run.begin_epoch(epoch)
            run.penalised(torch.tensor(1.0))


def test_a_run_that_is_joined_late_takes_out_nothing_that_has_not_been_penalised():
    model = Residual()
    with torch.no_grad():  # as initialisations have them that begin with a silent branch
        for tensor in (model.conv1.weight, model.bn1.weight, model.bn1.bias, model.conv2.weight.transpose(0, 1)):
            tensor[:6] = 0
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = morphogen.PruneTrain(interval=2, folded=True)
    run = morphogen.attach(model, optimizer, method, example=image(4), epochs=8, start_epoch=4)
    assert run.network.current == run.network.dense
    run.penalised(torch.tensor(1.0))
    run.begin_epoch(5)
    run.penalised(torch.tensor(1.0))
    run.begin_epoch(6)  # an interval of its own is over
    assert run.network.current != run.network.dense

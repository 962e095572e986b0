"""The group lasso: its value and gradient against loops, what it is a sum over, and its coefficient."""

import math

import pytest
import torch
from torch import nn

import morphogen
from morphogen import GroupLasso, PruneTrain
from morphogen.parts import Prune

from nets import Concat, Grouped, Plain, Residual, SqueezeExcite, image, small


class Transposed(nn.Module):
    """A transposed convolution, whose weight is (in, out), and one of two groups."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.up = nn.ConvTranspose2d(6, 8, 2, stride=2)
        self.two = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.two(self.up(self.stem(x))).mean((2, 3)))


def each(count, run=1):
    """Neighbouring positions, `run` of them a channel."""
    return [[i * run + j for j in range(run)] for i in range(count)]


def pairs(count):
    """Position i of the first half with position i of the second: the same place in both groups of a layer."""
    return [[i, i + count] for i in range(count)]


CHANNELS = {
    # By weight: the positions of each channel along its axes, worked out by hand.
    Plain: {"conv1": {0: each(8)}, "conv2": {0: each(16), 1: each(8)}, "fc": {1: each(16, 16)}},
    Residual: {
        "stem": {0: each(8)},
        "conv1": {0: each(12), 1: each(8)},
        "conv2": {0: each(8), 1: each(12)},
        "fc": {1: each(8)},
    },
    Concat: {"left": {0: each(8)}, "right": {0: each(4)}, "join": {0: each(16), 1: each(12)}, "fc": {1: each(16)}},
    Grouped: {
        "stem": {0: pairs(4)},
        "depthwise": {0: pairs(4)},
        "two": {0: pairs(6), 1: each(4)},
        "widen": {0: each(8, 4), 1: pairs(6)},
        "eight": {0: each(8, 2)},
        "fc": {1: each(8, 2)},
    },
    SqueezeExcite: {
        "conv": {0: each(16)},
        "reduce": {0: each(4), 1: each(16)},
        "expand": {0: each(16), 1: each(4)},
        "fc": {1: each(16)},
    },
    Transposed: {
        "stem": {0: each(6)},
        "up": {0: each(6), 1: pairs(4)},
        "two": {0: pairs(4), 1: each(2)},
        "fc": {1: pairs(2)},
    },
}


def by_loops(model):
    """The penalty as the paper writes it: one weight after the other."""
    penalty = 0.0
    for name, axes in CHANNELS[type(model)].items():
        weight = model.get_submodule(name).weight.detach().double()
        for dim, channels in axes.items():
            for channel in channels:
                squares = 0.0
                for position in channel:
                    for entry in weight.select(dim, position).flatten().tolist():
                        squares += entry * entry
                penalty += math.sqrt(squares)
    return penalty


def by_autograd(model):
    """The penalty with PyTorch's own norm and gradient."""
    return sum(
        torch.linalg.vector_norm(model.get_submodule(name).weight.index_select(dim, torch.tensor(channel)))
        for name, axes in CHANNELS[type(model)].items()
        for dim, channels in axes.items()
        for channel in channels
    )


def gradients(model, penalty):
    model.zero_grad()
    penalty.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("make", CHANNELS, ids=lambda make: make.__name__)
def test_value_and_gradient(make, memory_format):
    model = make().double().to(memory_format=memory_format)
    penalty = GroupLasso(morphogen.trace(model, image().double()))()
    assert penalty.item() == pytest.approx(by_loops(model), rel=1e-6)
    mine, theirs = gradients(model, 3 * penalty), gradients(model, 3 * by_autograd(model))
    for name, gradient in theirs.items():
        if gradient is None:
            assert mine[name] is None, name
        else:
            torch.testing.assert_close(mine[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", CHANNELS, ids=lambda make: make.__name__)
def test_of_a_part_it_is_what_is_left(make):
    """After a morph the lasso of the small network is that of the dense one with zeros for what is gone."""
    model = make().double()
    net = morphogen.trace(model, image().double())
    part = net.subnetwork(alive={group.name: range(1, group.size, 2) for group in net.groups})
    alive = net.structure.alive_mask(part)
    with torch.no_grad():
        for name, layout in net.structure.tensors.items():
            for dim, axis in enumerate(layout.axes):
                if axis is not None and layout.role.kind == "weight":
                    model.get_parameter(name).index_fill_(dim, (~alive[axis]).nonzero().flatten(), 0.0)
    expected = by_loops(model)
    morphogen.morph(net, part)
    assert GroupLasso(net)().item() == pytest.approx(expected, rel=1e-6)


def test_channels_of_zeros_have_no_gradient_and_no_nan():
    model = Residual()
    with torch.no_grad():
        model.conv1.weight[3:7] = 0
        model.conv2.weight[:, 3:7] = 0
        model.conv2.weight[5] = 0
        model.fc.weight.zero_()
    gradient = gradients(model, GroupLasso(morphogen.trace(model, image()))())
    assert not gradient["conv1.weight"][3:7].any() and not gradient["conv2.weight"][:, 3:7].any()
    assert not gradient["conv2.weight"][5].any() and not gradient["fc.weight"].any()
    assert all(g is None or g.isfinite().all() for g in gradient.values())


def test_half_precision_weights():
    """Squares of 1e-3 in bfloat16, added up in float32; the gradient has the weight's dtype."""
    model = Residual().bfloat16()
    with torch.no_grad():
        model.conv1.weight.mul_(1e-2)
    penalty = GroupLasso(morphogen.trace(model, image().bfloat16()))()
    assert penalty.dtype == torch.float32 and penalty.item() == pytest.approx(by_loops(model), rel=1e-6)
    mine, theirs = gradients(model, penalty), gradients(model.double(), by_autograd(model))
    for name, gradient in theirs.items():
        if gradient is not None:
            assert mine[name].dtype == torch.bfloat16
            torch.testing.assert_close(mine[name].double(), gradient, rtol=5e-3, atol=1e-6)


def test_under_autocast_it_is_the_same():
    model = Plain()
    lasso = GroupLasso(morphogen.trace(model, image()))
    plain = lasso()
    expected = gradients(model, plain)
    run = morphogen.attach(model, torch.optim.SGD(model.parameters(), 0.1), PruneTrain(), example=image(), epochs=2)
    loss = torch.tensor(2.0)
    with torch.autocast("cpu", torch.bfloat16):
        whole = run.penalised(loss)
    assert whole.dtype == torch.float32 and run.part(Prune).pruner.coefficient is not None
    found = gradients(model, (whole - loss) / run.part(Prune).pruner.coefficient)
    assert torch.allclose((whole - loss) / run.part(Prune).pruner.coefficient, plain, rtol=1e-5)
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None)
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-8)


def test_images_classes_excluded_and_frozen_layers_are_not_penalised():
    model = Plain()
    lasso = GroupLasso(morphogen.trace(model, image(), exclude=["conv2"]))
    # conv2 is whole, so that the channels it reads and writes stay; nothing else may go either.
    assert not lasso.axes
    model = Residual()
    model.conv1.weight.requires_grad_(False)
    lasso = GroupLasso(morphogen.trace(model, image(), exclude=["fc"]))
    assert {name: [axis.dim for axis in axes] for name, axes in lasso.axes.items()} == {"conv2.weight": [1]}
    whole = GroupLasso(morphogen.trace(Residual(), image()))
    dims = {name: [axis.dim for axis in axes] for name, axes in whole.axes.items()}
    assert dims == {"stem.weight": [0], "conv1.weight": [0, 1], "conv2.weight": [0, 1], "fc.weight": [1]}


class Odd(nn.Module):
    """An op without a rule."""

    def forward(self, x):
        return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)


def test_what_an_op_without_a_rule_reads_is_not_penalised():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), Odd(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    dims = {
        name: {axis.dim for axis in axes} for name, axes in GroupLasso(morphogen.trace(model, image())).axes.items()
    }
    assert dims == {"0.weight": {0}, "1.weight": {1}, "3.weight": {0}, "4.weight": {1}}


def test_attention_is_penalised_by_channel():
    model, size = small("deit_tiny_patch16_224", depth=2)
    axes = GroupLasso(morphogen.trace(model, torch.randn(2, 3, size, size))).axes
    width = model.blocks[0].attn.proj.in_features
    queries, stream = axes["blocks.0.attn.qkv.weight"]
    assert (queries.dim, stream.dim) == (0, 1)
    # A channel of a head is a row each of the queries, keys and values.
    assert queries.places.shape == (width, 3) and stream.places is None


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.9])
def test_the_first_batch_sets_the_coefficient(ratio):
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = morphogen.attach(model, optimizer, PruneTrain(ratio=ratio), example=image(), epochs=4, start_epoch=0)
    assert run.part(Prune).pruner.coefficient is None
    loss = nn.functional.cross_entropy(model(image(8)), torch.arange(8))
    whole = run.penalised(loss)
    coefficient = run.part(Prune).pruner.coefficient
    penalty = coefficient * by_loops(model)
    assert penalty / (loss.item() + penalty) == pytest.approx(ratio, rel=1e-6)
    assert whole.item() == pytest.approx(loss.item() + penalty, rel=1e-6)
    whole.backward()
    optimizer.step()
    for epoch in range(4):  # fixed from then on, through morphs too
        if epoch:
            run.begin_epoch(epoch)
        with torch.no_grad():
            model.conv1.weight[epoch] = model.conv2.weight[:, epoch] = 0
        whole = run.penalised(torch.tensor(7.0))
        assert run.part(Prune).pruner.coefficient == coefficient
        assert whole.item() == pytest.approx(7 + coefficient * GroupLasso(run.network)().item(), rel=1e-6)
    assert len(run.history) > 1


def test_in_steps_of_accumulated_gradients_the_penalty_counts_once():
    model = Residual().eval()
    images, labels = image(8), torch.arange(8)
    found = []
    for parts, divide_before in [(1, False), (4, False), (4, True)]:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        run = morphogen.attach(model, optimizer, PruneTrain(), example=image(), epochs=2)
        run.part(Prune).pruner.coefficient = 0.01 / (parts if divide_before else 1)  # what equal losses would have set
        model.zero_grad()
        for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            loss = nn.functional.cross_entropy(model(x), y)
            (run.penalised(loss / parts) if divide_before else run.penalised(loss) / parts).backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        run.end()
    for name, gradient in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)

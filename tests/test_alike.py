"""Weights of one shape worked on as one tensor give what each gives alone."""

import pytest
import torch
from torch import nn

import morphogen
from morphogen.pruning.alike import alike, stacked
from morphogen.pruning.lasso import GroupLasso, Step

from checks import perturb
from nets import Grouped, Plain, Tower, image


def lasso_of(model: nn.Module, side: int = 8) -> GroupLasso:
    perturb(model)
    return GroupLasso(morphogen.trace(model, image(2, side)))


def test_weights_of_one_shape_are_together_and_grouped_ones_alone():
    lasso = lasso_of(Tower(depth=4))
    kinds = {kind.names for kind in alike(lasso.weights, lasso.axes)}
    assert kinds == {("conv1.weight",), tuple(f"blocks.{i}.conv.weight" for i in range(4)), ("fc.weight",)}
    for make in (Plain, Grouped):  # a linear layer behind flatten, convolutions with groups
        lasso = lasso_of(make())
        for kind in alike(lasso.weights, lasso.axes):
            assert len(kind.names) == 1 or all(axis.index is None for axis in kind.axes)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_stacked_weights_lie_in_memory_as_they_did(memory_format):
    weights = [torch.randn(4, 6, 3, 3).contiguous(memory_format=memory_format) for _ in range(3)]
    together = stacked(weights)
    assert together.shape == (3, 4, 6, 3, 3)
    for one, weight in zip(together, weights, strict=True):
        assert torch.equal(one, weight) and one.stride() == weight.stride()
    assert stacked([weight.bfloat16() for weight in weights]).dtype == torch.float32


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_in_the_memory_format_of_the_weights(memory_format):
    lasso = lasso_of(Tower().to(memory_format=memory_format))
    lasso().backward()
    assert all(weight.grad.stride() == weight.stride() for weight in lasso.weights.values())


def test_different_steps_shrink_weights_of_one_shape_as_each_alone():
    lasso = lasso_of(Tower(depth=4))
    names = [f"blocks.{i}.conv.weight" for i in range(4)]
    scales = [None, torch.rand(12, 12, 3, 3) + 0.5, None, torch.rand(12, 12, 3, 3) + 0.5]
    steps = dict.fromkeys(lasso.weights, Step(0.0))
    steps |= {name: Step(0.1 * i, scale) for i, (name, scale) in enumerate(zip(names, scales, strict=True), start=1)}
    before = {name: weight.detach().clone() for name, weight in lasso.weights.items()}
    lasso.shrink(steps)
    for i, (name, scale) in enumerate(zip(names, scales, strict=True), start=1):
        expected = before[name]
        for others in ((1, 2, 3), (0, 2, 3)):
            length = 0.1 * i / (1.0 if scale is None else scale.mean(others, keepdim=True))
            expected = expected * (1 - length / expected.square().sum(others, keepdim=True).sqrt()).clamp(min=0)
        torch.testing.assert_close(lasso.weights[name], nn.Parameter(expected))
    for name in lasso.weights.keys() - set(names):
        assert torch.equal(lasso.weights[name], before[name])

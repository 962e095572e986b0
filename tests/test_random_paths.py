"""Models that choose by random numbers of Python or NumPy what they run in training (stochastic depth with an `if`)."""

import random

import numpy
import pytest
import torch
from torch import nn

import morphogen


class Skipped(nn.Module):
    """A residual block that is left out now and then."""

    def __init__(self, draw):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.draw = draw

    def forward(self, x):
        if self.training and self.draw() < 0.5:
            return x
        return x + self.second(self.norm(self.first(x)).relu())


def from_numpy():
    """As a function, since a copy of the method would have numbers of its own."""
    return numpy.random.rand()


@pytest.mark.parametrize("module, draw", [(random, random.random), (numpy.random, from_numpy)])
@pytest.mark.parametrize("seed", range(4))
def test_the_draw_of_a_moment_decides_nothing(module, draw, seed):
    module.seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), *[Skipped(draw) for _ in range(4)], nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = morphogen.NetworkExpansion(width=0.5, depth=0.5, stages=2)
    with pytest.warns(UserWarning, match="draws random numbers of Python or NumPy"):
        run = morphogen.attach(model, optimizer, method, example=torch.zeros(2, 6), epochs=2)
    for epoch in range(2):
        run.begin_epoch(epoch)
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [len(sub.blocks["1..4"]) for _, sub in run.history] == [2, 4]

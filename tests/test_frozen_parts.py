"""Modules inside a model that are frozen whole: a teacher, a momentum encoder, a pretrained backbone."""

import copy
import warnings

import pytest
import torch
from torch import nn

import morphogen

HALF = morphogen.NetworkExpansion(width=0.5, stages=2)


class Twins(nn.Module):
    """A student and one that is not trained."""

    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x):
        return self.student(x), self.teacher(x)


def attached(model, method=HALF, **settings):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    return morphogen.attach(model, optimizer, method, example=torch.zeros(2, 6), epochs=2, **settings)


def test_a_teacher_that_would_shrink_is_named():
    with pytest.warns(UserWarning, match=r"teacher: frozen, and smaller in some stages.*exclude=\['teacher'\]"):
        attached(Twins())


@pytest.mark.parametrize(
    "method, settings",
    [
        (HALF, {"exclude": ["teacher"]}),
        (morphogen.Dense(), {}),
        (morphogen.NetworkExpansion(width=0.5, stages=2, operator="restore"), {}),
    ],
    ids=str,
)
def test_nothing_is_said_where_it_stays_or_comes_back(method, settings):
    model, x = Twins(), torch.randn(4, 6)
    expected = model.teacher(x)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = attached(model, method, **settings)
    assert not any("frozen" in str(each.message) for each in said)
    run.begin_epoch(0)
    assert method is not HALF or torch.equal(model.teacher(x), expected)


def test_an_average_inside_the_model_follows_the_part_that_it_averages():
    model, x = Twins(), torch.randn(4, 6)
    optimizer = torch.optim.SGD(model.student.parameters(), lr=0.1)
    run = morphogen.attach(model.student, optimizer, HALF, example=x, epochs=2, ema=model.teacher)
    for epoch in range(2):
        run.begin_epoch(epoch)
        optimizer.zero_grad()
        model(x)[0].square().mean().backward()
        optimizer.step()
        with torch.no_grad():  # as BYOL and MoCo do
            for mine, its in zip(model.student.parameters(), model.teacher.parameters(), strict=True):
                its.mul_(0.9).add_(mine, alpha=0.1)
    assert [len(sub.channels["0"]) for _, sub in run.history] == [4, 8]
    Twins().load_state_dict(model.state_dict())

"""A record of a forward pass says what an export says, and tells the two modes apart where they differ."""

import pytest
import torch
from torch import nn

import morphogen
from morphogen.dense.fake import FakeModel
from morphogen.dense.program import export, op_name
from morphogen.dense.record import Record, exported


class Two(nn.Module):
    """Two branches that are always computed; `joined` says which of them goes on."""

    def __init__(self, joined):
        super().__init__()
        self.left, self.right, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.joined = joined

    def forward(self, x):
        return self.dropout(torch.relu_(self.norm(self.joined(self, self.left(x), self.right(x)))))


def both(net, left, right):
    return left + right


def one_in_training(net, left, right):
    return left + left if net.training else left + right


def order_in_training(net, left, right):
    return left + right if net.training else right + left


def power_in_training(net, left, right):
    return left + right * (2.0 if net.training else 3.0)


def more_in_training(net, left, right):
    return torch.tanh(left + right) if net.training else left + right


def image(batch=2):
    return torch.zeros(batch, 3, 8, 8)


def evaluated(fake, batch=None):
    return Record(fake, fake.double(training=False), fake.inputs(None, batch))


@pytest.mark.parametrize("training", [False, True])
def test_a_record_has_the_ops_of_an_export(training):
    fake = FakeModel(Two(both), image())
    ops = Record(fake, fake.double(training=training), fake.inputs(None)).ops
    program = export(fake.double(training=training), (image(),), {})
    assert [(op_name(op.target), op.path, op.shapes) for op in ops] == [
        (op_name(op.target), op.path, op.shapes) for op in exported(program)
    ]


@pytest.mark.parametrize(
    ("joined", "same"),
    [
        (both, True),
        (one_in_training, False),
        (order_in_training, False),
        (power_in_training, False),
        (more_in_training, False),
    ],
)
def test_the_modes_are_told_apart(joined, same):
    assert evaluated(FakeModel(Two(joined), image())).same_in_training() is same


def test_a_batch_of_one_says_nothing_of_training():
    fake = FakeModel(Two(both), image(1))
    assert not evaluated(fake).same_in_training() and evaluated(fake, batch=2).same_in_training()


def test_one_export_is_enough_where_the_modes_are_alike(monkeypatch):
    exports = []
    monkeypatch.setattr("morphogen.graph.trace.export", lambda *call: exports.append(call) or export(*call))
    for batch in (1, 2):
        net = morphogen.trace(Two(both), image(batch))
        assert len(exports) == batch and len({id(path.calls) for path in net.structure.paths}) == 1
        morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.trace(Two(one_in_training), image())
    assert len(exports) == 4


def test_a_record_leaves_no_hooks():
    fake = FakeModel(Two(both), image())
    model = fake.double(training=False)
    Record(fake, model, fake.inputs(None))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

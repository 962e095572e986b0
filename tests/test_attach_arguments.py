"""What `attach` and files are given by mistake: one clear message, and nothing has been changed."""

import os

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.lr_scheduler import StepLR

import morphogen
from morphogen.errors import ExportError, MorphError, MorphogenError


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


class Whole:
    """A whole number that is no int, as numpy has them."""

    def __index__(self):
        return 2


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"epochs": "2"}, "found '2'"),
        ({"epochs": True}, "found True"),
        ({"epochs": 2.0}, "found 2.0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch"),
        ({"steps_per_epoch": 2.5}, "found 2.5"),  # len(images) / batch_size
        ({"steps_per_epoch": "3"}, "found '3'"),
        ({"batch_size": True}, "batch_size"),
        ({"autocast": "bfloat16"}, "torch.bfloat16"),
        ({"method": "GrowOnce"}, "not a method"),
        ({"method": morphogen.GrowOnce}, "not a method"),
        ({"method": None}, "not a method"),
        ({"optimizer": net().parameters()}, "optimizer is of the wrong kind"),
        ({"optimizer": StepLR(torch.optim.SGD(net().parameters()), 1)}, "one Optimizer, or several"),
        ({"model": lambda x: x}, "not a model"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else given,
)
def test_what_attach_cannot_use_is_named(wrong, says):
    model = net()
    given = {"model": model, "optimizer": torch.optim.SGD(model.parameters()), "method": morphogen.GrowOnce()}
    given |= {"epochs": 2, "example": torch.zeros(2, 6)} | wrong
    with pytest.raises(MorphogenError, match=says):
        morphogen.attach(given.pop("model"), given.pop("optimizer"), given.pop("method"), **given)
    assert not model._forward_pre_hooks and not model._state_dict_hooks


def test_a_count_need_not_be_an_int():
    model = net()
    optimizer = torch.optim.SGD(model.parameters())
    method = morphogen.NetworkExpansion(width=0.5, stages=2)
    example = torch.zeros(2, 6)
    run = morphogen.attach(model, optimizer, method, example=example, epochs=Whole(), steps_per_epoch=Whole())
    assert (run.epochs, run.steps_per_epoch) == (2, 2) and type(run.epochs) is int


@pytest.mark.parametrize(
    "put_on", [parametrizations.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)]
)
def test_a_parameter_that_is_computed_after_the_trace_is_refused(put_on):
    model = net()
    network = morphogen.trace(model, torch.zeros(2, 6))
    morphogen.morph(network, network.subnetwork(width=0.5))
    put_on(model[2])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MorphError, match=r"2\.weight: the parameter that was traced is one no more"):
        morphogen.morph(network, network.dense)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_pipe_is_no_file(tmp_path):
    network = morphogen.trace(net(), torch.zeros(2, 6))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ExportError, match="a file, or nothing yet"):
        morphogen.save(network, tmp_path / "pipe")
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"] and (tmp_path / "pipe").is_fifo()


def test_a_network_that_can_narrow_is_not_said_to_be_whole():
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return torch.fake_quantize_per_tensor_affine(self.net(x), 0.1, 0, -128, 127)

    with pytest.warns(UserWarning, match="no rule for the op aten.fake_quantize_per_tensor_affine"):
        network = morphogen.trace(Quantised(), torch.zeros(2, 6))
    assert "2 channel groups" in str(network) and "of parameters at half width" in str(network)

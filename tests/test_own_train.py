"""A module's own `train` is called, because it alone knows what it caches; what else it does is undone."""

import torch
from torch import nn

import morphogen


class Freezing(nn.Sequential):
    """Its first layer learns in evaluation mode alone."""

    def train(self, mode=True):
        super().train(mode)
        return self.requires_grad_(not mode)


def test_a_train_that_freezes_leaves_parameters_and_modes_alone():
    model = nn.Sequential(Freezing(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 4)).eval()
    net = morphogen.trace(model, torch.zeros(2, 6))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for target in (net.subnetwork(width=0.5), net.dense):
        morphogen.morph(net, target, optimizer=optimizer)
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
    assert model[0][0].weight.shape == (8, 6)

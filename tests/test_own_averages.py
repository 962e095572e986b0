"""Averages that a loop keeps of its own follow the network; other copies are left alone."""

import copy

import pytest
import timm
import torch
from torch import nn

import morphogen
from morphogen.extend import Average, ConfigError

from nets import Residual, Tower, image
from own_loops import DEEP, WIDE, attached, seeded, sgd, step


@pytest.mark.parametrize("make", [timm.utils.ModelEmaV3, torch.optim.swa_utils.AveragedModel])
def test_averages_made_after_attach_follow(make):
    model, optimizer, run = attached(WIDE + DEEP, steps_per_epoch=1)
    run.begin_epoch(0)
    average, best = make(model), copy.deepcopy(model)
    count = sum(p.numel() for p in best.parameters())
    for epoch in range(4):
        run.begin_epoch(epoch)
        step(model, optimizer)
        (average.update if hasattr(average, "update") else average.update_parameters)(model)
    Tower().load_state_dict(average.module.state_dict())
    assert sum(p.numel() for p in best.parameters()) == count  # the best so far stays as it was


def test_a_keeper_of_the_best_is_no_average():
    class Best:
        def update(self, model):
            self.model = copy.deepcopy(model)

    model, optimizer, run = attached(WIDE)
    best = Best()
    run.begin_epoch(0)
    step(model, optimizer)
    best.update(model)
    count = sum(p.numel() for p in best.model.parameters())
    run.begin_epoch(2)
    assert sum(p.numel() for p in best.model.parameters()) == count


def test_an_average_swapped_in_for_validation_changes_nothing():
    model, optimizer, run = attached(DEEP, steps_per_epoch=2)
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    for epoch in range(4):
        run.begin_epoch(epoch)
        for _ in range(2):
            step(model, optimizer)
            ema.update(model)
        average = run.part(Average).network
        own = copy.deepcopy(model.state_dict())
        model.load_state_dict(ema.module.state_dict())
        model.load_state_dict(own)
        assert run.part(Average).network is average
    with pytest.raises(ConfigError, match="over"):
        run.begin_epoch(2)


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.fixture
def alone():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("wrap", "late"),
    [
        (compiled, False),
        (nn.parallel.DistributedDataParallel, True),
        pytest.param(compiled, True, marks=pytest.mark.nightly),
        pytest.param(nn.parallel.DistributedDataParallel, False, marks=pytest.mark.nightly),
    ],
)
def test_averages_around_wrappers_follow(wrap, late, alone):
    make = torch.optim.swa_utils.AveragedModel
    model = seeded(Residual)
    optimizer, wrapper = sgd(model), wrap(model)
    average = None if late else make(wrapper)
    run = morphogen.attach(model, optimizer, WIDE, example=image(4), epochs=4, ema=average)
    for epoch in range(4):
        run.begin_epoch(epoch)
        average = make(wrapper) if average is None else average
        step(wrapper, optimizer)
        average.update_parameters(wrapper)
        average(image(4))
        if epoch == 1:
            run.load_state_dict(copy.deepcopy(run.state_dict()))
            average.load_state_dict(copy.deepcopy(average.state_dict()))
    inner = average.module._orig_mod if wrap is compiled else average.module.module
    Residual().load_state_dict(inner.state_dict())

"""Where and when a run is told of an epoch: in threads beside each other, under inference mode, counted from one."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import morphogen

from nets import Tower, image


def trained(counted_from=0, around=torch.enable_grad):
    model = Tower(4, rate=0.0)
    optimizer = torch.optim.AdamW(model.parameters())
    method = morphogen.NetworkExpansion(width=0.5, depth=0.5, stages=2)  # with a momentum network
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=2)
    for epoch in range(2):
        with around():
            run.begin_epoch(epoch + counted_from)
        for _ in range(2):
            optimizer.zero_grad()
            model(image(4)).square().mean().backward()
            optimizer.step()
    run.end()
    assert run.network.current == run.network.dense and not any(p.is_inference() for p in model.parameters())
    return True


def test_models_are_attached_in_threads_beside_each_other():
    with warnings.catch_warnings(), ThreadPoolExecutor(2) as pool:
        warnings.simplefilter("ignore")
        assert all(pool.map(lambda _: trained(), range(4)))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_an_epoch_begins_behind_an_evaluation(around):
    assert trained(around=around)


def test_epochs_that_are_counted_from_one_are_told_of_at_once():
    with pytest.warns(UserWarning, match=r"counted from 0; .*run\.begin_epoch\(epoch - 1\)"):
        trained(counted_from=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trained()
        model = Tower(4, rate=0.0)
        method = morphogen.NetworkExpansion(width=0.5, stages=2)
        optimizer = torch.optim.AdamW(model.parameters())
        morphogen.attach(model, optimizer, method, example=image(), epochs=4, start_epoch=1)
    assert not any("counted from 0" in str(each.message) for each in said)

"""What is predicted not to fit into memory is said before the run starts."""

import warnings

import pytest
import torch

from morphogen.methods import build_method
from morphogen.train import room
from morphogen.train.config import Recipe
from morphogen.train.loop import Run
from morphogen.train.sources import load_data


def run_of(method="NetworkExpansion(stages=3)"):
    recipe = Recipe("resnet8(width=16)", images=256, test_images=50, batch_size=128, epochs=6)
    return Run(recipe, load_data(recipe), build_method(method), method, 0)


def test_the_first_stage_that_does_not_fit_is_named(monkeypatch):
    memory, stages = (attached := run_of().attached).memory, attached.stages
    needs = [memory.bytes(stage.subnetwork, 128) for stage in stages]
    assert needs[0] < needs[1] < needs[2]
    for there, epoch in ((needs[2], None), (needs[2] - 1, 5), (needs[1] - 1, 3), (needs[0] - 1, 1)):
        monkeypatch.setattr(room, "memory_of", lambda device, there=there: there)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run_of()
        found = [str(w.message) for w in told if "predicted to need" in str(w.message)]
        assert len(found) == (epoch is not None)
        assert all(f"from epoch {epoch} on a step of 128 images" in text for text in found)


def test_batches_that_follow_the_memory_are_left_alone(monkeypatch):
    monkeypatch.setattr(room, "memory_of", lambda device: 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_of("PruneTrain(ratio=0.2) + DynamicBatch(limit=256)")


def test_memory_of_this_machine():
    there = room.memory_of(torch.device("cpu"))
    assert there is not None and 2**28 < there < 2**50


@pytest.mark.parametrize("error", [ValueError, OSError, AttributeError])
def test_where_nobody_knows_nothing_is_said(monkeypatch, error):
    def unknown(name):
        raise error

    monkeypatch.setattr(room.os, "sysconf", unknown)
    assert room.memory_of(torch.device("cpu")) is None

"""A run in other places: TensorBoard's and W&B's own files, with every morph as an event."""

import json
import sys

import pytest
from torch import nn

from morphogen import cli
from morphogen.errors import ConfigError
from morphogen.report.ledger import Epoch, Ledger, MorphEvent, StageCost
from morphogen.train.trackers import Trackers, tracking


class Tiny(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
        )


TRAIN = "train --data digits --model test_trackers:Tiny --epochs 4 --batch_size 32 --images 64 --test_images 50".split()
METHOD = ["--method", "NetworkExpansion(stages=2)"]


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli.main([*TRAIN, *METHOD, "--track", "[tensorboard]", "--output", str(tmp_path)]) == 0
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    record = json.loads((tmp_path / "results.json").read_text())[0]
    for name in ("loss", "accuracy"):
        told = [(event.step, event.value) for event in found.Scalars(name)]
        assert told == [(epoch["epoch"], pytest.approx(epoch[name])) for epoch in record["epochs"]]
    assert [event.step for event in found.Scalars("morph/accuracy after")] == [2]
    assert [event.step for event in found.Tensors("morph/text_summary")] == [2]
    parameters = [event.value for event in found.Scalars("parameters")]
    assert parameters[0] < parameters[2] == parameters[3]
    assert found.Tensors("settings/text_summary")


def test_wandb_offline(tmp_path):
    assert cli.main([*TRAIN, *METHOD, "--track", "[wandb]", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = path.read_bytes()  # W&B's own log of records; their texts are in it as they are
    record = json.loads((tmp_path / "results.json").read_text())[0]
    for epoch in record["epochs"]:
        assert json.dumps(epoch["loss"]).encode() in written
    (morph,) = record["morphs"]
    assert b"epoch 2: " in written and f"{morph['accuracy_after']:.2f} % right after".encode() in written


def test_a_missing_package_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"track, wandb: the package is not installed. pip install"):
        with tracking(["wandb"], tmp_path, Ledger("m", "n", "d", 0), {}):
            pass


def test_the_morphs_of_an_epoch_come_with_it():
    """Also where the run goes on within an epoch that a morph began; the last morph comes when all is over."""
    ledger, told = Ledger("m", "n", "d", 0), []

    class Place:
        def write(self, epoch, figures, event):
            told.append((epoch, figures["accuracy"], event))

    ledger.stages.append(StageCost(0, (8, 8), 10, 640, 32))
    ledger.epochs.append(Epoch(0, 1.0, 50.0, 2.0))
    Trackers([Place()]).follow(ledger)
    ledger.morphs.append(MorphEvent(1, 50.0, 45.0, 0.1, 3.1))
    again = Trackers([Place()])  # of another process
    ledger.epochs.append(Epoch(1, 1.0, 60.0, 4.0))
    again.follow(ledger)
    again.end(ledger)
    ledger.morphs.append(MorphEvent(2, 60.0, 59.0, 0.1, 3.1))
    again.end(ledger)
    assert told == [
        (0, 50.0, ""),
        (1, 60.0, "epoch 1: 10 parameters at 8 x 8, accuracy 50.00 % before and 45.00 % right after"),
        (2, 60.0, "epoch 2: 10 parameters at 8 x 8, accuracy 60.00 % before and 59.00 % right after"),
    ]

"""Training one can watch: a line an epoch, a live table, the curve, the best network, stopping early, predictions."""

import csv
import io
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from morphogen.cli import main
from morphogen.commands.watching import Watching
from morphogen.dense.subnet import SubNetwork
from morphogen.methods import NetworkExpansion, ProgressiveUnfreezing
from morphogen.report.confusion import write_confusion
from morphogen.report.training import extent_of
from morphogen.train.best import is_best, waited
from morphogen.train.config import Recipe
from morphogen.train.loop import Run
from morphogen.train.progress import epochs_left, flop_share
from morphogen.train.sources import load_data
from morphogen.train.tasks import Classification

SMALL = [
    "--data",
    "digits",
    "--model",
    "resnet8(width=8)",
    "--batch_size",
    "64",
    "--images",
    "256",
    "--test_images",
    "100",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three sizes, and its best network."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ["train", *SMALL, "--epochs", "3", "--method", "NetworkExpansion(stages=3)", "--keep_best"]
    assert main([*arguments, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(trained):
    assert main(["export", str(trained), "--onnx", "--program"]) == 0
    return trained


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four digits, as files of the size that is trained on."""
    folder = tmp_path_factory.mktemp("photos")
    pixels, _ = load_digits(return_X_y=True)
    for number in range(4):
        grey = (torch.from_numpy(pixels[number]).view(8, 8) * 255 / 16).round().to(torch.uint8)
        Image.fromarray(grey.numpy()).save(folder / f"{number}.png")
    return folder


def watched(console):
    recipe = Recipe(data="digits", model="resnet8(width=8)", epochs=2, batch_size=64, images=128, image_size=8)
    run = Run(recipe, load_data(recipe), NetworkExpansion(stages=2), "x", seed=0)
    with Watching(run, console) as tell:
        for epoch in run.epochs():
            tell(epoch)
    return run


def test_without_a_terminal_there_is_a_line_for_each_epoch_and_each_morph():
    console = Console(file=io.StringIO(), soft_wrap=True)
    run = watched(console)
    began, few, first, morph, second = console.file.getvalue().splitlines()
    assert few.startswith("4 steps in all are few to learn in: a smaller --batch_size or more --epochs")
    assert began.endswith("2 epochs of 2 steps to go, network at 0.50 width, full from epoch 2")
    assert first.startswith("epoch 1 of 2: loss ") and f"accuracy {run.ledger.epochs[0].accuracy:.2f} %" in first
    assert "size 0.50 width" in first and "images/s" in first and first.endswith(" left")
    assert morph.startswith("epoch 2: 0.50 width -> full; accuracy ")
    assert "size full, FLOPs 1.00" in second and second.endswith(" 0.0 s left")


def test_in_a_terminal_there_is_a_table_of_80_columns():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    watched(console)
    text = console.file.getvalue()
    assert all(word in text for word in ("loss", "accuracy %", "images/s", "left", "0.50 width -> full", "2/2"))
    assert "step 2 of 2" not in text.splitlines()[-1] and "epoch 3" not in text  # no epoch is at work at the end


def test_extents_by_hand():
    dense = SubNetwork({"a": (0, 1, 2, 3), "b": (0, 1)}, {"s": (0, 1, 2)}, (32, 32))
    assert extent_of(dense, dense) == "full"
    part = SubNetwork({"a": (0, 1), "b": (0,)}, {"s": (0, 2)}, (24, 24))
    assert extent_of(part, dense) == "0.50 width, 2/3 blocks, 24 px"
    assert extent_of(SubNetwork(dense.channels, dense.blocks, (16, 24)), dense) == "16x24 px"


def test_epochs_left_count_what_is_to_come_as_large_as_it_will_be():
    recipe = Recipe(data="digits", model="resnet8(width=8)", epochs=4, batch_size=64, images=128, image_size=8)
    run = Run(recipe, load_data(recipe), NetworkExpansion(stages=2), "x", seed=0)
    assert epochs_left(run, 1) == pytest.approx(1 + 2 / flop_share(run))  # one more narrow epoch, two of the whole
    assert epochs_left(run, 4) == 0 and run.position == (0, 0, 2)


def test_frozen_layers_cost_less_than_the_whole():
    recipe = Recipe(data="digits", model="resnet8(width=8)", epochs=4, batch_size=64, images=128, image_size=8)
    run = Run(recipe, load_data(recipe), ProgressiveUnfreezing(), "x", seed=0)
    assert 1 / 3 < flop_share(run) < 0.6  # the whole forward pass, and little of the backward pass


def test_patience_counts_from_the_last_change_of_size_and_not_while_one_is_to_come():
    epochs = [SimpleNamespace(epoch=number, accuracy=value) for number, value in enumerate((50, 60, 55, 58, 57))]
    ledger = SimpleNamespace(epochs=epochs, morphs=[], kept={"epoch": 1, "accuracy": 60})
    run = SimpleNamespace(ledger=ledger, is_growing=False)
    assert waited(run) == 3 and not is_best(ledger)
    ledger.morphs = [SimpleNamespace(epoch=3)]  # before the fourth epoch
    assert waited(run) == 2
    run.is_growing = True
    assert waited(run) == 0
    ledger.epochs, ledger.kept = epochs[:2], {"epoch": 0, "accuracy": 50}
    assert is_best(ledger)
    ledger.kept = None
    assert is_best(ledger)
    ledger.epochs = epochs[:3]
    assert not is_best(ledger)


def test_a_run_stops_early_at_full_size_and_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Classification, "evaluate", lambda *_: {"accuracy": 50.0})  # it never gets better
    short = ["train", *SMALL, "--epochs", "3", "--method", "NetworkExpansion(stages=2)", "--patience", "2"]
    assert main([*short, "--output", str(tmp_path / "short")]) == 0
    said = capsys.readouterr().err
    assert "patience 2 never counts so far" in said and "has 1 of the 3 epochs" in said
    arguments = ["train", *SMALL, "--epochs", "9", "--method", "NetworkExpansion(stages=2)", "--patience", "2"]
    arguments += ["--output", str(tmp_path)]
    assert main(arguments) == 0
    assert "stopped after epoch 7 of 9: no better test in 2 epochs; the network is at full" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "results.json").read_text())
    assert len(record["epochs"]) == 7 and record["morphs"][0]["epoch"] == 5 and record["stopped"] is None
    assert main([*arguments, "--resume"]) == 0 and "is finished" in capsys.readouterr().out


def test_the_curve_and_the_classes_are_there(trained):
    assert (trained / "training.png").stat().st_size > 5000 and (trained / "confusion.png").stat().st_size > 5000
    rows = list(csv.reader((trained / "confusion.csv").open()))
    assert rows[0][1:] == list("0123456789") and sum(int(count) for row in rows[1:] for count in row[1:]) == 100


def test_the_best_network_is_kept_at_its_size(trained, tmp_path):
    (record,) = json.loads((trained / "results.json").read_text())
    best = max(record["epochs"], key=lambda epoch: epoch["accuracy"])
    content = torch.load(trained / "best.pt", weights_only=True)
    alive = SubNetwork.from_json(content["subnetwork"]).to_dict()
    at = [stage["subnetwork"] for stage in record["history"] if stage["epoch"] <= best["epoch"]][-1]
    assert alive == at
    assert main(["export", str(trained), "--best", "--output", str(tmp_path)]) == 0
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == list("0123456789")
        assert file.get_tensor("conv1.weight").shape == content["state_dict"]["conv1.weight"].shape


def test_the_files_say_what_they_expect(exported):
    import onnx

    notes = {entry.key: entry.value for entry in onnx.load(exported / "model.onnx").metadata_props}
    extra = {"morphogen.json": ""}
    torch.export.load(exported / "model.pt2", extra_files=extra)
    for found in (notes, json.loads(extra["morphogen.json"])):
        assert json.loads(found["classes"]) == list("0123456789") and found["crop"] == "whole"
        assert len(json.loads(found["mean"])) == len(json.loads(found["std"])) == 3


def test_predictions_are_those_of_the_network_from_either_file(exported, photos, capsys):
    first = str(photos / "0.png")
    assert main(["predict", str(exported), str(photos), "--format", "json", "--top", "10"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["image"] for each in found] == [str(photos / f"{number}.png") for number in range(4)]
    assert all(sum(share for _, share in each["classes"]) == pytest.approx(1, abs=1e-4) for each in found)
    assert main(["predict", str(exported / "model.onnx"), str(photos), "--format", "json", "--top", "10"]) == 0
    for ours, theirs in zip(found, json.loads(capsys.readouterr().out), strict=True):
        assert dict(map(tuple, ours["classes"])) == pytest.approx(dict(map(tuple, theirs["classes"])), abs=1e-4)
    assert main(["predict", str(exported), first, "--top", "2", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2"] and rows[0]["class"] == found[0]["classes"][0][0]


def test_the_test_images_are_predicted_as_they_were_tested(trained, photos):
    """A file gives the very numbers that the network saw in its test."""
    from morphogen.train.predict import open_predictor

    data = load_data(Recipe(data="digits", model="resnet8(width=8)", batch_size=64, images=256))
    images, _ = next(iter(data.test_batches()))
    torch.testing.assert_close(open_predictor(trained).image(str(photos / "0.png")), images[0], atol=0.02, rtol=0)


def test_what_cannot_be_predicted_is_one_line(trained, photos, tmp_path, capsys):
    broken, other = tmp_path / "broken.png", tmp_path / "other.onnx"
    broken.write_bytes(b"cut")
    other.write_bytes(b"no model")
    assert main(["predict", str(trained), str(photos / "0.png"), str(broken)]) == 2
    out, error = capsys.readouterr()
    assert out.startswith(str(photos / "0.png")) and "broken.png" in error and error.count("\n") == 1
    for given, words in ([[str(trained)], "no images are given"], [[str(tmp_path), str(broken)], "no trained network"]):
        assert main(["predict", *given]) == 2 and words in capsys.readouterr().err
    assert main(["predict", str(other), str(broken)]) == 2 and "cannot read the file" in capsys.readouterr().err


def test_figures_of_the_classes_by_hand(tmp_path):
    write_confusion([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0], ["a", "$b_", "c", "none"], tmp_path)
    a, b, c, none, mean = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert (a["precision"], a["recall"], a["F1"], a["images"]) == ("0.6667", "0.6667", "0.6667", "3")
    assert (b["precision"], b["recall"], b["F1"]) == ("0.6667", "1.0000", "0.8000")
    assert c["F1"] == none["F1"] == "0.0000" and mean["F1"] == "0.3667"  # (2/3 + 4/5) / 4


def test_balanced_classes_weigh_by_hand():
    task = load_data(Recipe(data="digits", class_weights="balanced")).task
    weights = task.weights
    counts = load_data(Recipe(data="digits")).counts
    torch.testing.assert_close(weights * counts, torch.full((10,), counts.sum() / 10))
    scores = torch.randn(4, 10, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 2])
    each = torch.nn.functional.cross_entropy(scores, labels, reduction="none") * weights[labels]
    torch.testing.assert_close(task.loss(lambda _: scores, scores, labels), each.sum() / weights[labels].sum())

"""How a network is tested: the crop of its own configuration, another size, several averages; tables say so."""

import csv
import json

import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import v2

from morphogen.errors import ConfigError
from morphogen.methods import Dense, build_method
from morphogen.report.ledger import Ledger
from morphogen.report.measured import measured
from morphogen.report.render import summary, write_results
from morphogen.train.images import CentreCrops
from morphogen.train.loop import Run
from morphogen.train.models import crop_of
from morphogen.train.saved import save_network
from morphogen.train.sources import load_data
from morphogen.train.tasks import TokenLabelling, classification_of

from batches import recipe, streamed
from nightly import often

VIT = "timm:vit_tiny_patch16_224(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2)"


@pytest.mark.parametrize(
    ("model", "side", "crop"),
    [
        ("timm:deit_small_patch16_224", 224, (0.9, "bicubic")),
        ("deit_small_patch16_224(depth=2)", 224, (0.9, "bicubic")),
        ("timm:volo_d1_224", 224, (0.96, "bicubic")),
        ("timm:resnet50", 224, (0.95, "bicubic")),
        ("timm:resnet50", 288, (1.0, "bicubic")),  # the size of its test
        ("resnet50", 224, (0.875, "bilinear")),  # torchvision's, whose name it is too
        ("torchvision:resnet50", 288, (0.875, "bilinear")),
        ("resnet20", 32, (0.875, "bilinear")),
        ("test_recipe:own", 224, (0.875, "bilinear")),
    ],
)
def test_a_model_is_tested_by_its_own_configuration(model, side, crop):
    assert crop_of(model, side) == crop


def test_a_crop_is_timms_own(tmp_path):
    """The pixels that timm's transform for the model's own tests gives."""
    path = tmp_path / "1.png"
    noise = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    v2.functional.to_pil_image(noise).resize((330, 260), Image.Resampling.BICUBIC).save(path)
    theirs = timm.data.create_transform((3, 224, 224), crop_pct=0.9, interpolation="bicubic", normalize=False)
    (ours, label) = CentreCrops([(str(path), 3)], (224, 224), *crop_of("timm:deit_tiny_patch16_224", 224))[0]
    assert label == 3 and torch.equal(ours, theirs(Image.open(path).convert("RGB")))
    plain, _ = CentreCrops([(str(path), 3)], (224, 224))[0]
    assert not torch.equal(plain, ours)


def test_the_record_says_how_it_was_tested(photos):
    data = streamed(photos, model="timm:deit_tiny_patch16_224", ema=[0.9, 0.99])
    assert data.protocol() == "the centre 0.9 of test images at 32 pixels, bicubic, the best average of 0.9, 0.99"
    assert load_data(recipe(ema=0.5)).protocol() == "whole test images at 16 pixels, the average of 0.5"
    assert load_data(recipe()).protocol() == "whole test images at 16 pixels"


def run_of(method="Dense", **settings):
    made = recipe(**{"images": 512, "epochs": 3, "lr": 0.05} | settings)
    run = Run(made, load_data(made), build_method(method), method, seed=0)
    list(run.epochs())
    return run


def test_the_best_of_several_averages_is_tested_saved_and_named(tmp_path):
    run = run_of(images=800, ema=[0.5, 0.9999])
    record = run.ledger.record()
    assert record["average"] == 0.5  # the other is still the first weights, or nearly
    assert record["accuracy"] == record["epochs"][-1]["accuracy"] > 20
    assert run.result is run.averages[0].module and run.result is not run.averages[1].module
    save_network(run, tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, run.averages[0].module.state_dict()[key]) for key, value in saved.items())
    alone = [run_of(images=800, ema=decay).ledger.accuracy for decay in (0.5, [0.9999])]
    assert record["accuracy"] == alone[0] > alone[1]
    assert Ledger.from_record(json.loads(json.dumps(record))).record() == record


@pytest.mark.parametrize("ema", [[], [0.9, 0.9], [0.9, 0.0], [1.5], [float("nan")]])
def test_averages_that_cannot_be_are_refused(ema):
    with pytest.raises(ConfigError, match="ema out of range"):
        recipe(ema=ema)


@pytest.mark.parametrize(("model", "side"), often([("resnet8(width=8)", 24), (VIT, 24)], lambda case: case[0] == VIT))
def test_a_finished_network_is_tested_at_another_size_and_stays_as_it_is(model, side):
    run = run_of("GrowOnce", model=model, test_size=side, ema=0.5)
    before = {key: value.clone() for key, value in run.result.state_dict().items()}
    found = run.tester.figures_at(run.result, side)
    assert found == run.ledger.tested_at and found["size"] == side and 0 < found["accuracy"] < 100
    assert found["shown"] == f"whole test images at {side} pixels"
    after = run.result.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[key], value) for key, value in before.items())
    assert run.attached.network.current.resolution == (16, 16)
    assert run.tester.figures_at(run.result, 16)["accuracy"] == run.ledger.accuracy  # its own


def test_tables_have_the_best_epoch_beside_the_last_and_the_protocol(tmp_path):
    run = run_of()
    record = run.ledger.record() | {"speedup": 1.0, "flop_speedup": 1.0, "realised": None}
    accuracies = [10.0, 60.0, 50.0]
    for epoch, accuracy in zip(record["epochs"], accuracies, strict=True):
        epoch["accuracy"] = accuracy
    record["accuracy"] = 50.0
    (row,) = summary([record])
    assert row["accuracy %"] == "50.00" and row["best epoch %"] == "60.00"
    write_results([record], tmp_path)
    assert "Tested on whole test images at 16 pixels." in (tmp_path / "summary.md").read_text()
    assert measured([record], [record])["best"] == 60


def test_what_was_tested_at_another_size_and_the_best_average_are_in_the_tables(tmp_path):
    record = run_of().ledger.record() | {"speedup": 1.0, "flop_speedup": 1.0, "realised": None}
    records = [
        record | {"seed": seed, "tested_at": {"size": 24, "accuracy": accuracy}, "average": average}
        for seed, accuracy, average in ((0, 40.0, 0.5), (1, 44.0, 0.9))
    ]
    (row,) = summary(records)
    assert (row["at 24 %"], row["average"]) == ("42.00", "0.5, 0.9")
    assert "average" not in summary(records[:1])[0]
    write_results(records, tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["tested_at_accuracy"] for row in rows] == ["40.0", "44.0"]


def test_figures_of_another_protocol_are_not_put_beside_each_other():
    record = run_of().ledger.record() | {"speedup": 1.0, "flop_speedup": 1.0, "realised": None}
    other = record | {"seed": 1, "protocol": "the centre 0.9 of test images at 16 pixels, bicubic"}
    with pytest.raises(ConfigError, match="another protocol"):
        summary([record, other])


def test_the_true_class_is_blended_in_where_it_is_asked_for(tmp_path):
    """VOLO's authors leave it out (`--ground-truth`, off)."""
    plain, blended = (
        classification_of(recipe(token_labels=tmp_path, ground_truth=on), torch.ones(10)) for on in (False, True)
    )
    assert isinstance(plain, TokenLabelling) and not plain.ground_truth and blended.ground_truth
    assert Dense() == build_method("Dense")

"""The reference trainer, the comparison and the command line on real digits, small."""

import csv
import json
import math

import pytest
import torch
from PIL import Image
from torch import nn

from morphogen.cli import main
from morphogen.errors import ConfigError, TrainingError
from morphogen.methods import Dense, NetworkExpansion
from morphogen.report.ledger import Ledger
from morphogen.report.render import as_markdown, summary
from morphogen.train.augment import crop_and_flip
from morphogen.train.cifar_resnet import CIFAR_RESNETS
from morphogen.train.compare import speedups
from morphogen.train.config import Recipe
from morphogen.train.loop import Run
from morphogen.train.models import build_model
from morphogen.train.sources import load_data

SMALL = "--data digits --model resnet8(width=8) --epochs 2 --batch_size 64 --images 256 --image_size 8".split()


def recipe(**settings):
    return Recipe(
        **{"model": "resnet8(width=8)", "epochs": 4, "batch_size": 64, "images": 512, "image_size": 8}
        | {"lr_schedule": "cosine"}
        | settings
    )


def last_lr(steps):
    """Of the last step of a cosine from 0.1."""
    return 0.05 * (1 + math.cos(math.pi * (steps - 1) / steps))


def finish(run):
    for _ in run.epochs():
        pass
    return run


def test_a_run_grows_learns_and_keeps_its_books():
    data = load_data(recipe(images=None))
    run = finish(Run(recipe(images=None), data, NetworkExpansion(stages=2), "ne", seed=0))
    ledger = run.ledger
    assert ledger.accuracy > 80  # ten classes
    assert len(ledger.epochs) == 4 and [event.epoch for event in ledger.morphs] == [2]
    assert [stage.steps for stage in ledger.stages] == [2 * data.steps] * 2
    assert ledger.stages[0].training_flops < 0.3 * ledger.stages[1].training_flops
    assert ledger.flops == sum(s.training_flops for s in ledger.stages) * 2 * data.steps
    assert all(ledger.seconds[cause] > 0 for cause in ("step", "data", "trace", "morph", "evaluation"))
    assert ledger.training_seconds == pytest.approx(sum(ledger.seconds[c] for c in ("step", "data", "trace", "morph")))
    assert [stage["epoch"] for stage in ledger.history] == [0, 2]
    assert [stage.batch_size for stage in ledger.stages] == [64] * 2 and ledger.samples == 4 * data.steps * 64
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(last_lr(4 * data.steps))  # of a cosine to 0
    CIFAR_RESNETS["resnet8"](width=8).load_state_dict(run.model.state_dict())
    json.dumps(ledger.record())


def test_runs_in_turn_equal_runs_alone():
    """What one run does must not change another's random numbers."""
    data = load_data(recipe())
    alone = [finish(Run(recipe(), data, method, "x", seed=3)) for method in (Dense(), NetworkExpansion(stages=2))]
    runs = [Run(recipe(), data, method, "x", seed=3) for method in (Dense(), NetworkExpansion(stages=2))]
    for _ in zip(*(run.epochs() for run in runs), strict=True):
        pass
    for one, other in zip(alone, runs, strict=True):
        for name, tensor in one.model.state_dict().items():
            assert torch.equal(tensor, other.model.state_dict()[name]), name


def test_a_shortened_run_ends_its_schedule_early():
    data = load_data(recipe())
    run = finish(Run(recipe(), data, Dense(), "short", seed=0, steps=data.steps + 3))
    assert [stage.steps for stage in run.ledger.stages] == [data.steps + 3] and len(run.ledger.epochs) == 2
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(last_lr(data.steps + 3))


def test_a_loss_that_is_not_finite_names_the_step(tmp_path, capsys):
    with pytest.raises(TrainingError, match=r"epoch 1, step \d+: the loss is not finite"):
        finish(Run(recipe(lr=1e30), load_data(recipe()), Dense(), "x", seed=0))
    assert main(["train", *SMALL, "--method", "Dense", "--lr", "1e30", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "not finite" in error and "Traceback" not in error
    assert not (tmp_path / "model.pt").exists() and "no model.pt is written" in error  # its weights are of no use
    assert "not finite" in json.loads((tmp_path / "results.json").read_text())[0]["stopped"]


def test_train_writes_weights_that_load_and_a_ledger(tmp_path):
    assert main(["train", *SMALL, "--method", "NetworkExpansion(stages=2)", "--output", str(tmp_path)]) == 0
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    CIFAR_RESNETS["resnet8"](width=8).load_state_dict(saved["state_dict"])
    assert json.loads(saved["subnetwork"])["channels"]["conv1"] == "0:8"
    assert json.loads((tmp_path / "results.json").read_text())[0]["method"] == "NetworkExpansion(stages=2)"


def test_compare_prints_writes_and_goes_on_where_it_stopped(monkeypatch, tmp_path, capsys):
    # A clock that counts FLOPs: on a busy machine a method may be slower than dense, and then has no run in its time.
    monkeypatch.setattr(Ledger, "training_seconds", property(lambda ledger: ledger.flops / 1e9))
    arguments = [
        "compare",
        *SMALL,
        "--methods",
        "[NetworkExpansion(stages=2), \"NetworkExpansion(stages=2, operator='random')\"]",
        "--seeds",
        "2",
        "--output",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "realised" in table and "dense in the same time" in table
    records = json.loads((tmp_path / "results.json").read_text())
    # dense, two methods, and one dense run in the time that both take, each with two seeds
    assert len(records) == 8 and len({r["method"] for r in records}) == 4
    for key in (
        "method",
        "model",
        "data",
        "seed",
        "accuracy",
        "seconds",
        "flops",
        "speedup",
        "flop_speedup",
        "realised",
        "history",
        "environment",
        "recipe",
    ):
        assert key in records[0]
    short = next(r for r in records if r["method"].startswith("Dense in the time"))
    assert 0 < short["flops"] <= records[0]["flops"]
    assert len(list(csv.DictReader((tmp_path / "results.csv").open()))) == 8
    assert (tmp_path / "accuracy.png").stat().st_size > 1000
    before = (tmp_path / "runs.jsonl").read_text()
    assert main(arguments) == 0 and (tmp_path / "runs.jsonl").read_text() == before  # nothing was run again
    (tmp_path / "runs.jsonl").write_text("".join(before.splitlines(keepends=True)[:-1]) + '{"method": "cut sh')
    assert main(arguments) == 0 and len((tmp_path / "runs.jsonl").read_text().splitlines()) == 8
    assert main([*arguments, "--lr", "0.01"]) == 2 and "another recipe" in capsys.readouterr().err


def test_a_run_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def fails(self, number):
        if self.ledger.method != "Dense":
            raise TrainingError("the loss is not finite", where="step 3")
        return once(self, number)

    once = Run._train_epoch
    monkeypatch.setattr(Run, "_train_epoch", fails)
    refused(
        capsys, ["compare", *SMALL, "--methods", "[NetworkExpansion(stages=2)]", "--output", str(tmp_path)], "step 3"
    )
    assert json.loads((tmp_path / "runs.jsonl").read_text())["method"] == "Dense"


def test_speedups_by_hand():
    record, dense = {"training_seconds": 5.0, "flops": 25}, {"training_seconds": 10.0, "flops": 100}
    assert speedups(record, dense) == {"speedup": 2.0, "flop_speedup": 4.0, "realised": pytest.approx(1 / 3)}
    assert speedups(dense, dense)["realised"] is None


def test_summary_by_hand():
    base = {"training_seconds": 10.0, "speedup": 1.0, "flop_speedup": 1.0, "realised": None}
    base["epochs"] = [{"accuracy": 93.0}, {"accuracy": 80.0}]
    records = [base | {"method": "Dense", "accuracy": a} for a in (90.0, 92.0)]
    records += [base | {"method": "M", "accuracy": a, "speedup": 1.5, "realised": 0.8} for a in (89.0, 91.0)]
    rows = summary(records)
    assert rows[1] == {
        "method": "M",
        "accuracy %": "90.00 ± 1.41",
        "best epoch %": "93.00",
        "gap (points)": "-1.00",
        "seconds": "10.0",
        "speedup": "1.50x",
        "FLOP speedup": "1.00x",
        "realised": "0.80",
    }
    assert as_markdown(rows).count("\n") == 3


def test_crop_and_flip_gathers_each_image_by_its_own_offset():
    images = torch.arange(1, 2 * 3 * 4 * 4 + 1, dtype=torch.uint8).view(2, 3, 4, 4)
    assert torch.equal(crop_and_flip(images, 0, False, torch.Generator()), images)
    seen = set()
    for seed in range(40):
        out = crop_and_flip(images, 1, True, torch.Generator().manual_seed(seed))
        padded = nn.functional.pad(images, (1,) * 4)
        windows = {(top, left): padded[0, :, top : top + 4, left : left + 4] for top in range(3) for left in range(3)}
        matches = [
            (place, flip)
            for place, window in windows.items()
            for flip in (False, True)
            if torch.equal(out[0], window.flip(2) if flip else window)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 12  # of 18


@pytest.mark.parametrize(("depth", "parameters"), [(20, 272_474), (32, 466_906), (56, 855_770), (110, 1_730_714)])
def test_the_papers_cifar_networks(depth, parameters):
    """0.27, 0.46, 0.85 and 1.7 M parameters (He et al., Table 6), and 2,752 for the two projections."""
    model = CIFAR_RESNETS[f"resnet{depth}"]()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


# --- bad input --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A tiny image folder."""
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(40):
                Image.new("RGB", (16, 16), (i * 6, 99, 30)).save(tmp_path / part / label / f"{i}.png")
    return tmp_path


def test_an_image_folder_trains(folder, tmp_path):
    assert (
        main(
            [
                "train",
                "--model",
                "resnet8(width=8)",
                "--epochs",
                "2",
                "--batch_size",
                "32",
                "--data",
                str(folder),
                "--method",
                "NetworkExpansion(stages=2)",
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )


def test_large_images_stream(tmp_path):
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (90 + i, 80)).save(tmp_path / part / label / f"{i}.jpg")
    data = load_data(recipe(data=str(tmp_path), image_size=32, batch_size=2, images=None, workers=0))
    images, labels = next(iter(data.train_batches(0, 0)))
    assert images.shape == (2, 3, 32, 32) and labels.shape == (2,) and data.steps == 4
    assert sum(len(labels) for _, labels in data.test_batches()) == 8


def refused(capsys, arguments, *words):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.strip().splitlines() if "less than half of the model" not in line]  # a warning
    assert len(lines) == 1 and "Traceback" not in error, error
    for word in words:
        assert word in error, error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "resnet5O"], ["no model 'resnet5O'", "resnet50"]),
        (["--model", "resnet8(width='a')"], ["cannot build the model"]),
        (["--model", "resnet8(8"], ["cannot read"]),
        (["--model", "no.such:net"], ["cannot import"]),
        (["--data", "nowhere"], ["nowhere", "no such data"]),
        (["--method", "NetworkExpansion(width=0.0)"], ["0 < width <= 1"]),
        (["--method", "NetworkExpansion(width=1.5)"], ["found 1.5"]),
        (["--method", "NetworkExpansion(stages=0)"], ["stages"]),
        (["--method", "NetworkExpansion(stages=3)"], ["at most 2 stages, found 3"]),
        (["--method", "NetworkExpansion(stages='many')"], ["bad value for 'stages'"]),
        (["--method", "NetworkExpansion(operator='magic')"], ["no growth operator 'magic'"]),
        (["--method", "NetworkExpansion(hight=2)"], ["no setting 'hight'"]),
        (["--method", "NetworkExpanson"], ["no method", "NetworkExpansion"]),
        (["--epochs", "0"], ["epochs"]),
        (["--epochs", "many"], ["epochs"]),
        (["--image_size", "0"], ["image_size"]),
        (["--colour", "red"], ["colour"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--device", "meta"], ["meta"]),
        (["--image_size", "1"], ["at least 8"]),
        (["--seed", "99999999999999"], ["seed"]),
        (["--batch_size", "5000"], ["fewer training images than one batch"]),
        (["--model", "torchvision:alexnet"], ["features.2", "export"]),
        (["--weight_decay", ".nan"], ["weight_decay", "finite"]),
        (["--lr", ".inf"], ["lr", "finite"]),
        (["--mixup", "1e-320"], ["mixup", "0.001 to 1000"]),
        (["--cutmix", ".inf"], ["cutmix", "0 to 1000"]),
        (
            ["--model", "resnet8(width=4, num_classes=3)", "--method", "Dense"],
            ["no scores of the classes", "found shape (64, 3)"],
        ),
        (
            ["--model", "resnet8(width=4, num_classes=11)", "--mixup", "1", "--method", "Dense"],
            ["no scores of the classes", "(64, 11)"],
        ),
        (["--model", "test_train:frozen"], ["no parameter of the model is trained"]),
        (["--model", "test_train:two_outputs", "--method", "Dense"], ["no scores of the classes", "found tuple"]),
    ],
)
def test_bad_input_is_one_line(arguments, words, tmp_path, capsys):
    out = tmp_path / "out"
    refused(capsys, ["train", *SMALL, "--output", str(out), *arguments], *words)
    assert not out.exists()  # nothing half-written


def test_bad_folders_are_one_line(folder, tmp_path, capsys):
    start = ["train", *SMALL, "--output", str(tmp_path / "out"), "--data", str(folder)]
    (folder / "train" / "a" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    refused(capsys, start, "bad.png", "cannot read the image")
    for image in (folder / "train" / "a").iterdir():
        image.unlink()
    refused(capsys, start, "not an image folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(capsys, ["train", *SMALL, "--data", str(empty)], "not an image folder")


def test_a_corrupt_image_met_by_a_worker_is_one_line(tmp_path, capsys):
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (90 + i, 80)).save(tmp_path / part / label / f"{i}.jpg")
    (tmp_path / "train" / "a" / "3.jpg").write_bytes(b"cut")
    arguments = ["train", "--model", "resnet8(width=8)", "--epochs", "1", "--batch_size", "8", "--data", str(tmp_path)]
    arguments += ["--image_size", "32", "--method", "Dense", "--workers", "1", "--output", str(tmp_path / "out")]
    refused(capsys, arguments, "3.jpg", "cannot read the image")
    assert "3.jpg" in json.loads((tmp_path / "out" / "results.json").read_text())[0]["stopped"]


def test_an_unwritable_output_is_said_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for command in ("train", "compare"):
        refused(capsys, [command, *SMALL, "--epochs", "5", "--output", str(tmp_path / "file" / "sub")], "cannot write")


def test_a_log_of_something_else_is_refused(tmp_path, capsys):
    for content in (b'{"a": 1}\n', b"[]\n", b"\xff\xfe\n"):
        (tmp_path / "runs.jsonl").write_bytes(content)
        refused(capsys, ["compare", *SMALL, "--output", str(tmp_path)], "runs")


def test_ones_own_broken_model_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_one.py").write_text("def f(:\n")
    (tmp_path / "broken_two.py").write_text("1 / 0\n")
    (tmp_path / "broken_three.py").write_text("def f(num_classes):\n    return {}['x']\n")
    for name in ("broken_one", "broken_two", "broken_three"):
        refused(capsys, ["inspect", f"{name}:f"], name)


def test_bad_yaml_and_unknown_keys_are_one_line(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("epochs: 2\ncolour: red\n")
    refused(capsys, ["train", "--config", str(config)], "colour")
    config.write_text("epochs: [\n")
    refused(capsys, ["train", "--config", str(config)])
    refused(capsys, ["train", "--config", str(tmp_path / "none.yaml")], "none.yaml")


def test_yaml_takes_the_same_keys(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "data: digits\nmodel: resnet8(width=8)\nepochs: 2\nimages: 256\nbatch_size: 64\nmethod: Dense\n"
        f"output: {tmp_path / 'out'}\n"
    )
    assert main(["train", "--config", str(config), "--seed", "5"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())[0]["seed"] == 5


@pytest.mark.parametrize("command", ["train", "compare", "inspect", "label-maps"])
def test_help_shows_examples_as_they_are_typed(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and f"\nexamples:\n  morphogen {command}" in capsys.readouterr().out


def test_inspect_lists_groups_pins_and_costs(capsys):
    assert main(["inspect", "resnet20", "--image_size", "32", "--num_classes", "10", "--json", "true"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["Channel groups"][0]["channel group"] == "conv1" and len(report["Channel groups"]) == 12
    assert report["Cost for one image"][-1]["parameters"] == 272_474
    assert any("input" in pin["reason"] for pin in report["Pinned"])
    stacks = [(row["block stack"], row["units"]) for row in report["Block stacks"]]
    assert stacks == [("layer1", 3), ("layer2.1..2", 2), ("layer3.1..2", 2)]
    assert main(["inspect", "resnet20", "--image_size", "32", "--num_classes", "10"]) == 0
    assert "Channel groups" in capsys.readouterr().out


def test_any_model_by_name():
    assert build_model("timm:resnet18", 7).fc.out_features == 7
    assert build_model("torchvision:resnet18", 7).fc.out_features == 7
    assert build_model("test_train:own(width=3)", 7).out_features == 7
    with pytest.raises(ConfigError, match="not a model"):
        build_model("test_train:not_a_model", 7)


def frozen(num_classes):
    return CIFAR_RESNETS["resnet8"](width=4, num_classes=num_classes).requires_grad_(False)


class TwoOutputs(nn.Linear):
    def forward(self, input):
        output = super().forward(input.mean((2, 3)))
        return (output, output) if self.training else output


def two_outputs(num_classes):
    return TwoOutputs(3, num_classes)


def own(num_classes, width):
    return nn.Linear(width, num_classes)


def not_a_model():
    return 3


def test_a_rounded_resolution_is_said_in_one_line(tmp_path, capsys):
    vit = "timm:vit_tiny_patch16_224(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)"
    settings = [
        "--data",
        "digits",
        "--model",
        vit,
        "--images",
        "128",
        "--batch_size",
        "64",
        "--epochs",
        "4",
        "--channels_last",
        "false",
    ]
    assert main(["train", *settings, "--method", "ProgressiveResizing(stages=3)", "--output", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "resolution" in line]
    assert lines and all(line.startswith("morphogen: resolution (12, 12) is not possible") for line in lines)

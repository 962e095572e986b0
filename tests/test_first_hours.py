"""What stopped a newcomer in the first hours, each mended."""

import csv
import io
import json
import shlex
import time

import pytest
import torch
from rich.console import Console

import morphogen
from morphogen.cli import _parse, main
from morphogen.commands import watching
from morphogen.commands.recommend import settings
from morphogen.commands.terminal import measuring, told_file
from morphogen.commands.train import _own_model
from morphogen.errors import MorphError
from morphogen.plan.planner import Plan
from morphogen.plan.recommend import ranked
from morphogen.plan.steps import Bench
from morphogen.plan.studies import CNN, OTHER, Study, studied
from morphogen.report.render import as_table, fitted
from morphogen.train.config import TrainConfig
from test_recommend import plan_of, stage
from test_train import SMALL

from nets import Tower, image
from nightly import often


@pytest.fixture
def measured(monkeypatch):
    """Sub-networks that were measured, with whole batches."""
    found = []
    monkeypatch.setattr(Bench, "fit_batch", lambda self, seconds: None)
    monkeypatch.setattr(
        Bench, "_measured", lambda bench, part, real=Bench._measured: found.append(part) or real(bench, part)
    )
    return found


def test_recommend_measures_what_trains_and_nothing_else(measured):
    told = []
    morphogen.recommend(
        Tower(),
        image(4),
        epochs=9,
        methods=["GrowOnce", "PruneTrain"],
        seconds=0.01,
        progress=lambda *n: told.append(n),
    )
    # The dense network at its six sizes: no other numbers of channels, nothing such as pruning leaves.
    assert len(measured) == 6 and told == [(done, 6) for done in range(7)]


def test_recommend_times_the_loss_it_is_given(measured):
    seen = set()

    def loss(model, images, labels):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(images)
        seen.add((outputs.dtype, labels.dtype))
        return outputs.float().square().mean()

    labels = torch.zeros(4, dtype=torch.int16)
    morphogen.recommend(Tower(), image(4), labels=labels, loss=loss, epochs=9, methods=["GrowOnce"], seconds=0.01)
    assert seen == {(torch.bfloat16, torch.int16)}


def test_recommend_ends_with_the_lines_to_use():
    lines = str(ranked(OTHER, {"Prog(stages=2)": plan_of(2.0), "GrowOnce": plan_of(6.0)}, 9)).splitlines()
    assert lines[-4:] == [
        "the first one in a loop of your own:",
        "  method = morphogen.GrowOnce()",
        "  run = morphogen.attach(model, optimizer, method, example=images, epochs=14)",  # 1.5 times 9
        "  run.begin_epoch(epoch)  # at the head of every epoch",
    ]
    assert "  method = morphogen.Prog(stages=2)" in str(ranked(OTHER, {"Prog(stages=2)": plan_of(2.0)}, 9))
    assert "attach" not in str(ranked(CNN, {"GrowOnce": plan_of(1.0)}, 9))  # dense training is best


def test_recommend_repeats_what_it_was_given():
    """A command that leaves out the images' size trains another network than the one that was measured."""
    asked = [
        *("--model", "resnet8(width=4)", "--data", "my photos", "--image_size", "48", "--batch_size", "16"),
        *("--lr", "0.02", "--channels_last", "false", "--exclude", "['fc', 'a.b']", "--epochs", "20"),
    ]
    _, config = _parse(["recommend", *asked])
    assert _parse(["train", *shlex.split(settings(config, 20))])[1] == _parse(["train", *asked])[1]
    assert "lr_schedule" not in settings(config, 20)  # it is as by default

    scaled = ["--recipe", "network-expansion/4/0.375", "--data", "digits", "--scale", "0.1", "--lr", "0.3"]
    scaled_config = _parse(["recommend", *scaled])[1]
    told = settings(scaled_config, scaled_config.epochs)
    assert sorted(shlex.split(told)) == sorted(scaled)


def test_recommend_gives_a_reason_once():
    found = ranked(CNN, {"Prog": MorphError("no stack"), "StackBERT": MorphError("no stack"), "X": MorphError("y")}, 9)
    assert [line for line in found.lines() if "fit" in line] == [
        "Prog, StackBERT do not fit: no stack",
        "X does not fit: y",
    ]


def test_a_method_whose_time_is_not_known_is_not_what_to_try():
    prunes = "PruneTrain(ratio=0.7, interval=3, proximal=True)"  # gains accuracy in its study
    runs = plan_of(3.0).runs
    found = ranked(CNN, {prunes: Plan(runs, stage(), 9, 8, 0.1, None, (), prunes=True), "Prog": plan_of(2.0)}, 9)
    assert [each.verdict for each in found.candidates] == ["accuracy not measured", "time known in training"]
    assert found.best is not None and found.best.method == "Prog"


def test_the_study_nearest_in_length_speaks():
    long, short = (Study(CNN, "M", "net", "data", epochs, (1.0,), (2.0,), "here") for epochs in (40, 10))
    assert [studied(CNN, "M", epochs, [long, short]) for epochs in (5, 19, 21, 300)] == [short, short, long, long]


def test_measuring_says_a_line_now_and_then_without_a_terminal(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 5.0, 11.0, 11.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with measuring() as tell:
        for done in range(3):
            tell(done, 3)
    assert capsys.readouterr().err == "measuring: 0 of 3 sub-networks\nmeasuring: 2 of 3 sub-networks\n"


@pytest.mark.parametrize("parallel", often(["1", "2"], lambda parallel: parallel == "1"))
def test_of_several_lengths_a_method_that_does_not_fit_one_is_left_out_and_said(parallel, tmp_path, capsys):
    unfit, fits = "NetworkExpansion(stages=3)", "ProgressiveResizing(ratio=0.75, stages=2)"
    settings = ["--epochs", "4", "--budgets", "[0.5, 1]", "--parallel", parallel, "--output", str(tmp_path)]
    assert main(["compare", *SMALL, *settings, "--methods", f"[{unfit}, '{fits}']"]) == 2
    error = capsys.readouterr().err
    assert f"left out, {unfit}, " in error and "0.5 of the length: " in error
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").open()]
    assert sorted((run["method"], run["budget"]) for run in runs) == [
        ("Dense", 0.5),
        ("Dense", 1.0),
        (fits, 0.5),
        (fits, 1.0),
    ]
    assert {row["method"] for row in csv.DictReader((tmp_path / "fronts.csv").open())} == {"Dense", fits}


def test_train_names_the_next_commands_and_a_run_of_enough_steps_gets_no_advice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watching, "FEW", 8)  # two epochs of four steps
    assert main(["train", *SMALL, "--epochs", "2", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "few to learn in" not in out
    assert out.splitlines()[-3:] == [
        f"  morphogen report {tmp_path}",
        f"  morphogen predict {tmp_path} IMAGE",
        f"  morphogen export {tmp_path} --onnx",
    ]


def test_the_next_commands_name_a_model_of_ones_own():
    assert _own_model(TrainConfig(model="resnet8(width=8)")) == ""
    assert _own_model(TrainConfig(model="mine.nets:Net(depth=3)")) == " --model 'mine.nets:Net(depth=3)'"


def test_a_small_file_has_its_size_in_kilobytes(tmp_path):
    for size, said in ((12_400, "12 kB"), (999_000, "999 kB"), (1_250_000, "1.2 MB")):
        (tmp_path / "f").write_bytes(bytes(size))
        assert told_file(tmp_path / "f") == f"{tmp_path / 'f'}, {said}"


def test_a_run_of_a_comparison_says_when_it_begins(capsys, tmp_path):
    arguments = [
        "compare",
        *SMALL,
        "--epochs",
        "2",
        "--methods",
        "NetworkExpansion(stages=2)",
        "--output",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Dense, seed 0: 2 epochs to go", "NetworkExpansion(stages=2), seed 0: 2 epochs to go"]
    assert lines[2].startswith("Dense, seed 0: epoch 1 of 2 is over, accuracy ")


def test_recipes_name_the_command_that_trains_the_table(capsys):
    assert main(["recipes", "network-expansion/4/0.5"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.endswith("morphogen compare --table network-expansion/4 --data FOLDER --scale 0.02")


def test_the_table_of_a_comparison_breaks_no_word_at_80_columns():
    names = (
        "method",
        "accuracy %",
        "best epoch %",
        "gap (points)",
        "top-5 %",
        "seconds",
        "speedup",
        "FLOP speedup",
        "realised",
    )
    rows = [
        dict(zip(names, values.split(","), strict=True))
        for values in (
            "GrowOnce,23.00 ± 0.25,23.00,+4.00,71.20,14.1,1.66x,1.63x,1.05",
            "  dense in the same time,12.00 ± 0.31,12.00,-7.00,52.20,16.0,1.46x,1.67x,",
        )
    ]
    kept = ("accuracy %", "gap (points)", "seconds", "speedup", "FLOP speedup")
    assert fitted(rows, 140, kept) == rows
    assert list(fitted(rows, 80, kept)[0]) == ["method", *kept]
    console = Console(file=io.StringIO(), width=80)
    console.print(as_table(fitted(rows, 80, kept), narrow=True))
    text = console.file.getvalue()
    assert all(word in text for word in ("GrowOnce", "accuracy", "23.00 ± 0.25", "seconds", "(points)", "dense in the"))

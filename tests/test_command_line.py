"""Manners of the command line: flags, near misses, help, and what an exit code says."""

import json

import pytest

from morphogen import __version__
from morphogen.cli import COMMANDS, main
from morphogen.commands.arguments import completed
from morphogen.spec import nearest

SMALL = ["--model", "resnet8(width=8)", "--epochs", "2", "--batch_size", "64", "--images", "128", "--image_size", "8"]


def printed(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_version_and_help(capsys):
    assert printed(["--version"], capsys) == f"morphogen {__version__}\n"
    bare = printed([], capsys)
    assert bare == printed(["--help"], capsys)
    assert all(name in bare for name in COMMANDS) and "exit codes:" in bare and "130  stopped by Ctrl-C" in bare
    told = printed(["train", "--help"], capsys)
    assert "--resume [true|false]" in told and "exit codes:" in told


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["train", "--resume", "--lr", "1"], ["train", "--resume=true", "--lr", "1"]),
        (["train", "--fast"], ["train", "--fast=true"]),
        (["train", "--fast", "false", "--overwrite"], ["train", "--fast", "false", "--overwrite=true"]),
        (["train", "--compile=false"], ["train", "--compile=false"]),
        (["train", "--output", "--fast"], ["train", "--output", "--fast=true"]),
        (["export", "--onnx", "runs/a"], ["export", "--onnx=true", "runs/a"]),
        (["plan", "--model", "resnet8", "--json"], ["plan", "resnet8", "--json=true"]),
        (["plan", "--model=resnet8"], ["plan", "resnet8"]),
        (["compare", "--methods", "Prog(a=1, b=2)"], ["compare", '--methods=["Prog(a=1, b=2)"]']),
        (["compare", "--methods", "[Prog]", "--budgets=1"], ["compare", "--methods", "[Prog]", "--budgets=[1]"]),
        (["train", "--track", "wandb", "--lr", "1"], ["train", '--track=["wandb"]', "--lr", "1"]),
    ],
)
def test_flags_and_lists_of_one(typed, meant):
    assert completed(typed, COMMANDS) == meant


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["no command 'trian'", "Did you mean train?"]),
        (["train", "--epoch", "3"], ["no option --epoch", "Did you mean --epochs?"]),
        (["train", "--batch-size", "3"], ["Did you mean --batch_size?"]),
        (["train", "--xyzzy", "red"], ["no option --xyzzy", "train --help"]),
        (["train", "resnet18"], ["--model resnet18"]),
        (["train", "--optimizer", "adam"], ["--optimizer", "sgd or adamw", "Did you mean adamw?"]),
        (["train", "--precision", "bf16"], ["Did you mean bfloat16"]),
        (["train", "--track", "tensorbord"], ["Did you mean tensorboard?"]),
        (["train", "--epochs", "five"], ["--epochs", "a whole number", "found five"]),
        (["train", "--resume=ture"], ["--resume", "true or false"]),
        (["train", "--resume", "--overwrite"], ["resume or overwrite"]),
        (["compare", "--methods", "GrowOnec"], ["no method 'GrowOnec'", "Did you mean GrowOnce?"]),
        (["train", "--method", "ssll", "--output", "none"], ["Did you mean SSL?"]),
        (["train", "--method", "GrowOnce(rati=0.5)", "--output", "none"], ["no setting 'rati'", "Did you mean at"]),
        (["inspect", "resnet81"], ["Did you mean resnet8"]),
        (["inspect"], ["inspect needs MODEL"]),
        (["export", "--onnx", "none"], ["no trained network there"]),
    ],
)
def test_what_was_probably_meant(arguments, words, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("morphogen: ") and error.count("\n") == 1
    assert not [word for word in words if word not in error], error


def test_the_nearest_come_first_whatever_their_case():
    assert nearest("ADAM", ["sgd", "adamw", "Adam"]) == ["Adam", "adamw"]
    assert nearest("zzz", ["sgd"]) == [] and nearest("x", []) == []


def test_a_method_that_does_not_fit_is_left_out_and_the_exit_code_says_so(tmp_path, capsys):
    compare = ["compare", *SMALL, "--output", str(tmp_path), "--methods"]
    unfit = "NetworkExpansion(stages=9)"  # of two epochs
    assert main([*compare, f"[{unfit}, NetworkExpansion(stages=2)]"]) == 2
    out, error = capsys.readouterr()
    assert f"left out, {unfit}, seed 0: " in error and "NetworkExpansion(stages=2)" in out
    methods = {json.loads(line)["method"] for line in (tmp_path / "runs.jsonl").open()}
    assert {"Dense", "NetworkExpansion(stages=2)"} <= methods and unfit not in methods
    before = (tmp_path / "runs.jsonl").read_text()
    assert main([*compare, unfit]) == 2 and (tmp_path / "runs.jsonl").read_text() == before  # nothing to compare with

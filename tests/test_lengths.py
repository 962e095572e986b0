"""Complete runs of several lengths: run by run, within a run, in processes; and times that are made of step times."""

import csv
import json
import os
import signal
from dataclasses import replace

import pytest

from morphogen.cli import main
from morphogen.errors import TrainingError
from morphogen.methods import Dense, ProgressiveResizing
from morphogen.plan import Supply
from morphogen.train import lengths, step_times, turns
from morphogen.train.checkpoint import Stopped
from morphogen.train.config import CompareConfig
from morphogen.train.finished import Finished
from morphogen.train.lengths import compare_lengths
from morphogen.train.processes import side_by_side
from morphogen.train.sources import load_data
from morphogen.train.step_times import StepTimes
from morphogen.train.turns import PlannedRun
from test_train import SMALL

from traced import traced_once

LABEL = "NetworkExpansion(stages=2)"
ARGUMENTS = ["compare", *SMALL, "--epochs", "4", "--methods", f"[{LABEL}]"]


def config(folder, **settings):
    small = {
        "data": "digits",
        "model": "resnet8(width=8)",
        "epochs": 4,
        "batch_size": 64,
        "images": 256,
        "image_size": 8,
    }
    return CompareConfig(**small | {"methods": [LABEL], "budgets": [0.5, 1], "output": folder} | settings)


def outcome(folder):
    """What of the finished runs must not depend on how they were made."""
    records = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    kept = {(r["method"], r["budget"], r["seed"]): (r["flops"], [e["loss"] for e in r["epochs"]]) for r in records}
    assert len(kept) == len(records)
    return kept


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The output folder of runs that took turns."""
    folder = tmp_path_factory.mktemp("alone")
    with traced_once():
        assert main([*ARGUMENTS, "--budgets", "[0.5, 1]", "--output", str(folder)]) == 0
    return folder


def test_each_length_is_a_complete_run(alone):
    records = [json.loads(line) for line in (alone / "runs.jsonl").read_text().splitlines()]
    assert {(r["method"], r["budget"]): len(r["epochs"]) for r in records} == {
        ("Dense", 0.5): 2,
        ("Dense", 1): 4,
        (LABEL, 0.5): 2,
        (LABEL, 1): 4,
    }
    grown = {r["budget"]: [morph["epoch"] for morph in r["morphs"]] for r in records if r["method"] == LABEL}
    assert grown == {0.5: [1], 1: [2]}  # half way, whatever the length
    found = json.loads((alone / "fronts.json").read_text())
    assert [(s["below"], s["cost"]) for s in found["speedups"]] == [
        (0, "seconds"),
        (0, "flops"),
        (1, "seconds"),
        (1, "flops"),
    ]
    assert found["seconds_of"] == "the runs themselves" and found["end_to_end"] == {}
    rows = list(csv.DictReader((alone / "fronts.csv").open()))
    seconds = {(r["method"], r["budget"]): r["training_seconds"] for r in records}
    assert {(row["method"], float(row["budget"])): float(row["seconds"]) for row in rows} == seconds
    assert (alone / "fronts.png").stat().st_size > 1000 and "| Dense | 0.5 | 1 |" in (alone / "fronts.md").read_text()


def test_finished_runs_are_read_back_and_other_settings_refused_by_name(alone, monkeypatch, capsys):
    begun = []
    monkeypatch.setattr(turns, "Run", lambda *arguments: begun.append(arguments))
    assert main([*ARGUMENTS, "--budgets", "[0.5, 1]", "--output", str(alone)]) == 0 and not begun
    assert "speedup at equal accuracy" in capsys.readouterr().out
    assert main([*ARGUMENTS, "--budgets", "[0.5, 1]", "--output", str(alone), "--lr", "0.2"]) == 2
    assert "another recipe; expected lr 0.2, found 0.1" in capsys.readouterr().err


def test_a_method_that_is_stretched_trains_for_longer_than_the_dense_network(tmp_path, capsys):
    arguments = [*ARGUMENTS, "--stretch", "1.5", "--output", str(tmp_path)]
    assert main([*arguments, "--budgets", "[0.5, 1]"]) == 0
    records = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert {(r["method"], r["budget"]): len(r["epochs"]) for r in records} == {
        ("Dense", 0.5): 2,
        ("Dense", 1): 4,
        (LABEL, 0.5): 3,
        (LABEL, 1): 6,
    }
    assert next(r for r in records if r["method"] == LABEL and r["budget"] == 1)["morphs"][0]["epoch"] == 3
    rows = list(csv.DictReader((tmp_path / "fronts.csv").open()))
    assert [(row["method"], row["budget"]) for row in rows] == [
        ("Dense", "0.5"),
        (LABEL, "0.75"),
        ("Dense", "1.0"),
        (LABEL, "1.5"),
    ]
    assert main([*ARGUMENTS, "--stretch", "2", "--output", str(tmp_path)]) == 2
    assert "another recipe; expected stretch 2.0, found 1.5" in capsys.readouterr().err
    assert main(arguments) == 0  # without budgets: the full lengths are there, a dense run in the method's time is not
    assert "4 epochs, methods 6" in capsys.readouterr().out
    kept = {r["method"]: r for r in json.loads((tmp_path / "results.json").read_text())}
    assert len(kept[LABEL]["epochs"]) == 6 and kept[LABEL]["speedup"] == pytest.approx(
        kept["Dense"]["training_seconds"] / kept[LABEL]["training_seconds"]
    )


def stop_once(monkeypatch):
    """Ask this process to stop at the end of the first epoch of any run."""
    asked = []

    def progress(*_):
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


@pytest.mark.nightly
def test_runs_that_take_turns_go_on_where_they_were_stopped(alone, tmp_path, monkeypatch, capsys):
    with pytest.raises(Stopped):
        compare_lengths(config(tmp_path), stop_once(monkeypatch))
    assert not (tmp_path / "runs.jsonl").exists()
    begun = {path.parent.name for path in tmp_path.glob("checkpoints/*/*.safetensors")}
    assert len(begun) == 4 and "Dense_0.5_0" in begun
    assert main([*ARGUMENTS, "--lr", "0.2", "--budgets", "[0.5, 1]", "--output", str(tmp_path)]) == 2
    assert "lr: the checkpoint is of another run; expected 0.2, as this one, found 0.1" in capsys.readouterr().err
    compare_lengths(config(tmp_path))
    assert outcome(tmp_path) == outcome(alone) and not list(tmp_path.glob("checkpoints/*"))


def test_runs_beside_each_other_equal_those_alone_and_are_timed_apart(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(step_times, "WINDOW", 0.01)
    with pytest.raises(Stopped):
        compare_lengths(config(tmp_path, parallel=2), stop_once(monkeypatch))
    assert len(list(tmp_path.glob("checkpoints/*/timed_apart"))) == 2
    found = compare_lengths(config(tmp_path, parallel=2))
    assert outcome(tmp_path) == outcome(alone) and not found.failures
    records = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert {r["budget"]: r.get("timed_apart", False) for r in records} == {0.5: True, 1: False}
    seconds = json.loads((tmp_path / "step_times.json").read_text())
    assert found.apart and {(p.method, p.budget): p.seconds for p in found.points} == {
        (method, float(budget)): each for method, lengths in seconds.items() for budget, each in lengths.items()
    }
    alone_seconds = {r["method"]: r["training_seconds"] for r in records if r["budget"] == 1}
    assert found.end_to_end == {
        LABEL: (alone_seconds["Dense"] / alone_seconds[LABEL], seconds["Dense"]["1"] / seconds[LABEL]["1"])
    }
    monkeypatch.setattr(lengths.StepTimes, "measure", None)  # kept, so not called
    assert compare_lengths(config(tmp_path)).points == found.points
    before = (tmp_path / "runs.jsonl").read_bytes()
    with pytest.raises(TrainingError, match=r"PruneTrain: it prunes.*in another folder"):  # there they cannot be timed
        compare_lengths(config(tmp_path, methods=["PruneTrain"]))
    assert (tmp_path / "runs.jsonl").read_bytes() == before


def test_a_process_that_fails_does_not_stop_the_others(tmp_path):
    settings = config(tmp_path, model="test_lengths:dies", parallel=2)
    finished = Finished(settings, load_data(settings))
    failures = side_by_side([PlannedRun("Dense", "Dense", 1, 8, 0.5)], settings, finished, lambda *_: None)
    assert failures == ["Dense, seed 1, 0.5 of the length, its process ended (exit code 3)"] and not finished.records


def dies(num_classes):
    """A model that takes its process along."""
    os._exit(3)


def test_seconds_of_a_run_by_hand(monkeypatch):
    recipe = config("unused")
    monkeypatch.setattr(step_times, "supply_of", lambda *_: Supply(lambda size: 64 / 0.25, overlapped=False))
    times = StepTimes(recipe, load_data(recipe))
    monkeypatch.setattr(step_times, "now", lambda device: 0.0)  # no time for rehearsing
    dense = times.network.dense
    small = replace(dense, resolution=(4, 4))
    measured = times.bench.cost(dense)
    times.bench.costs = {dense: measured, small: replace(measured, time=0.5)}
    times.bench.dense_times, times._traced = [2.0], 7.0
    monkeypatch.setattr(times.bench, "morph_seconds", lambda before, after, assembly: 3.0 * (before != after))
    # 4 epochs of 4 steps, each 2 s and 0.25 s for its images
    assert times.seconds(Dense(), 4) == 7 + 16 * 2.25
    # 2 epochs of them at half the resolution, which takes half the time, and a morph there and back
    method = ProgressiveResizing(ratio=0.5, stages=2)
    assert [span.stage.subnetwork for span in times.spans(method, 4)[1]] == [small, dense]
    assert times.seconds(method, 4) == 7 + 8 * 1.25 + 8 * 2.25 + 6


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (
            ["--methods", "[PruneTrain]", "--parallel", "2"],
            "PruneTrain: it prunes, searches, freezes or",
        ),
        (["--methods", "[NetworkExpansion(stages=2) + DynamicBatch]", "--parallel", "2"], "--parallel 1"),
        (["--budgets", "[0.5, 0.75]"], "1 among them"),
        (["--budgets", "[0.5, 0.55, 1]"], "each of another number of epochs, found [0.5, 0.55, 1.0]"),
        (["--budgets", "[0.1, 1]"], "which is [0, 4] epochs"),
        (["--budgets", "[.nan, .inf, 1]"], "found [nan, inf, 1.0]"),
        (["--budgets", "[]", "--parallel", "2"], "with budgets"),
        (["--stretch", "0.5"], "stretch out of range; expected 1 to 10, found 0.5"),
        (["--compile", "true", "--parallel", "2"], "without compile"),
        (["--methods", "[NetworkExpansion(stages=3)]"], "NetworkExpansion(stages=3), seed 0, 0.5 of the length: "),
    ],
)
def test_what_cannot_be_told_is_refused_before_anything_is_trained(more, word, tmp_path, capsys):
    arguments = [*ARGUMENTS, "--budgets", "[0.5, 1]", "--output", str(tmp_path / "out"), *more]
    assert main(arguments) == 2 and word in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs.jsonl").exists()

"""Which method: the ranking, the studies it cites, and the command."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import morphogen
from morphogen.cli import main
from morphogen.errors import ConfigError, MorphError
from morphogen.plan.planner import Plan, Run, StagePlan, plans
from morphogen.plan.predict import Prediction
from morphogen.plan.recommend import CANDIDATES, ranked
from morphogen.plan.steps import Bench, Training, bounds
from morphogen.plan.studies import CNN, OTHER, STUDIES, VIT, Study, kind_of, studied
from morphogen.train.models import build_model

from nets import Tower, image

ROOT = Path(__file__).parent.parent


def stage(memory=100.0):
    return StagePlan(0, 9, {}, 0, (1, 1), 1.0, None, 1, 1.0, 1.0, 1.0, 1.0, (1.0, 1.0), 1.0, None, memory, 0.0, ())


def plan_of(speedup, memory=100.0, low=0.9, high=1.1):
    run = Run("", (stage(memory),), Prediction(speedup, 1.5, None, 60.0, 90.0, 1.0), (low * speedup, high * speedup))
    return Plan((run,), stage(), 9, 8, 0.1, None, ("a note",))


def test_bounds_of_a_median():
    assert bounds([3.0, 1.0, 2.0]) == (1.0, 3.0)  # few: all of them
    # Of 100, the 42nd and the 58th: 100 / 2 - 0.82 * 10 lie outside.
    assert bounds([float(n) for n in range(100)]) == (41.0, 58.0)


def test_methods_that_keep_their_accuracy_come_first_and_the_fastest_of_them():
    found = ranked(
        VIT,
        {
            "Net2Net": MorphError("no width"),
            "EfficientTrain": plan_of(1.02),  # saves nothing
            "Prog": plan_of(9.0),  # -0.5 points in its study
            "NetworkExpansion": plan_of(5.0),  # in no study
            "Prog(depth_operator='identity')": plan_of(1.3),  # +1.1
            "GrowOnce(resolution=0.625, depth=0.25)": plan_of(2.0, memory=50.0),
        },
        40,
    )
    verdicts = [(each.method, each.verdict) for each in found.candidates]
    assert verdicts == [
        ("GrowOnce(resolution=0.625, depth=0.25)", "try it"),
        ("Prog(depth_operator='identity')", "try it"),
        ("NetworkExpansion", "accuracy not measured"),
        ("Prog", "loses accuracy"),
        ("EfficientTrain", "saves nothing here"),
        ("Net2Net", "does not fit"),
    ]
    assert found.best is not None and found.best.method == "GrowOnce(resolution=0.625, depth=0.25)"
    assert found.rows()[0] == {
        "method": "GrowOnce(resolution=0.625, depth=0.25)",
        "epochs": "40",
        "time": "2.00x (1.80 to 2.20)",
        "FLOPs": "1.50x",
        "run": "60.0 s",
        "memory": "0.50",
        "accuracy": "+1.0 points",
        "verdict": "try it",
    }
    assert "Net2Net does not fit: no width" in found.lines()
    assert found.lines().count("note: a note") == 1
    table = str(found).splitlines()
    assert table[0] == "vision transformer, 40 epochs" and table[1].startswith("method") and "2.00x" in table[2]


def test_a_method_whose_study_had_more_epochs_is_told_for_as_many():
    (found,) = ranked(CNN, {"GrowOnce": plan_of(3.0)}, 20).candidates
    assert found.study is not None and found.study.stretch == 1.5
    assert (found.epochs, found.speedup, found.flop_speedup, found.seconds) == (30, 2.0, 1.0, 60.0)
    assert found.bounds == pytest.approx((1.8, 2.2)) and found.verdict == "try it"
    assert "18 epochs against 12" in str(found.study)
    assert "example=images, epochs=30)" in str(ranked(CNN, {"GrowOnce": plan_of(3.0)}, 20))


def test_where_nothing_is_known_or_saved_it_says_so():
    found = ranked(OTHER, {"GrowOnce": plan_of(2.0)}, 9)
    assert found.candidates[0].verdict == "accuracy not measured" and "no study is about" in "\n".join(found.lines())
    assert ranked(CNN, {"GrowOnce": plan_of(1.0)}, 9).best is None
    assert ranked(CNN, {}, 9).best is None and str(ranked(CNN, {"X": MorphError("no")}, 9)).count("\n") == 2


def rows_of(where):
    return [json.loads(line) for line in (ROOT / where / "runs.jsonl").read_text().splitlines()]


def accuracies(study: Study, method: str) -> list[float]:
    """What the runs of a study say, one a seed."""
    rows = rows_of(study.where)
    epochs = study.epochs if method == "Dense" else round(study.epochs * study.stretch)
    if study.where.endswith("gpu"):
        check = "equal accuracy: ResNet-8" if study.kind == CNN else "equal accuracy: ViT"
        runs = [row["figures"]["run"] for row in rows if row.get("check") == check and "run" in row.get("figures", {})]
        return [run["accuracy"] for run in runs if run["method"] == method and run["epochs"] == epochs]
    names = (method, "Prog(depth_operator='mogrow')") if method == "Prog" else (method,)  # the default, written out
    return [row["accuracy"] for row in rows if row["method"] in names and len(row["epochs"]) == epochs]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: f"{study.kind[:3]} {study.method}")
def test_a_study_says_what_its_runs_say(study):
    assert tuple(round(each, 2) for each in accuracies(study, "Dense")) == study.dense
    assert tuple(round(each, 2) for each in accuracies(study, study.method)) == study.ours


def test_the_study_of_about_the_same_length_counts():
    quarter = "GrowOnce(resolution=0.625, depth=0.25)"
    short, long = studied(VIT, quarter, 10), studied(VIT, quarter, 60)
    assert short is not None and long is not None and (short.epochs, long.epochs) == (12, 40)
    assert short.gap < -4 and long.gap > 0
    early, late = studied(CNN, "GrowOnce", 12), studied(CNN, "GrowOnce", 90)
    assert early is not None and late is not None and early.gap > 1.5 and -0.3 < late.gap < 0  # nearer to the plateau
    assert ranked(VIT, {quarter: plan_of(2.0)}, 10).candidates[0].verdict == "loses accuracy"


def test_a_gap_has_the_error_of_its_seeds():
    study = Study(CNN, "M", "net", "data", 9, (10.0, 12.0), (13.0, 15.0), "here")
    assert study.gap == 3.0 and study.error == pytest.approx(2**0.5)  # two variances of 2, two seeds each
    assert str(study) == "+3.0 ± 1.4 points (net, data, 9 epochs, 2 seeds)"
    assert studied(CNN, "M", 9, [study]) is study and studied(VIT, "M", 9, [study]) is None


def test_the_kind_of_a_network():
    assert kind_of(build_model("resnet8(width=8)", 10)) == CNN
    vit = "timm:vit_tiny_patch16_224(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)"
    assert kind_of(build_model(vit, 10)) == VIT
    assert kind_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 4))) == OTHER


@pytest.fixture
def quick(monkeypatch):
    """Whole batches, three rounds."""
    monkeypatch.setattr(Bench, "fit_batch", lambda self, seconds: None)


def test_one_call_measures_what_several_methods_train_once(quick, monkeypatch):
    measured = []
    monkeypatch.setattr(
        Bench, "_measured", lambda bench, part, real=Bench._measured: measured.append(part) or real(bench, part)
    )
    training = Training(
        image(4), torch.randn(4, 10), lambda model: torch.optim.SGD(model.parameters(), lr=0.1), distance
    )
    methods = [
        "GrowOnce",
        "StackBERT",
        "NetworkExpansion(depth=0.5, stages=2)",
        "NetworkExpansion(width=0.5, stages=30)",
    ]
    found = plans(
        Tower(), {name: morphogen.methods.build_method(name) for name in methods}, training, epochs=9, seconds=0.01
    )
    assert list(found) == methods and len(measured) == len(set(measured))
    assert isinstance(found[methods[-1]], ConfigError)  # more stages than epochs
    for name in methods[:-1]:
        plan = found[name]
        assert isinstance(plan, Plan)
        low, high = plan.runs[0].bounds
        assert low <= plan.runs[0].prediction.speedup <= high


def distance(model, images, labels):
    return (model(images) - labels).square().mean()


def test_the_python_face_takes_any_output(quick):
    found = morphogen.recommend(Tower(), image(4), epochs=9, methods=["GrowOnce", "Dense"], seconds=0.01)
    assert {each.method for each in found.candidates} == {"GrowOnce", "Dense"}
    dense = next(each for each in found.candidates if each.method == "Dense")
    assert dense.verdict == "saves nothing here" and dense.speedup == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="GrowTwice"):
        morphogen.recommend(Tower(), image(4), epochs=9, methods=["GrowTwice"])


def test_the_command(quick, capsys):
    arguments = (
        "recommend resnet8(width=8) --image_size 16 --num_classes 10 --batch_size 8 --epochs 9 --seconds 0.01".split()
    )
    methods = ["--methods", "[GrowOnce, 'PruneTrain(ratio=0.7, interval=3, proximal=True)']"]
    assert main([*arguments, *methods]) == 0
    out = capsys.readouterr().out
    assert "convolutional network with batch norm, 9 epochs" in out and "known in training" in out
    assert "morphogen train --model" in out or "train the dense network" in out
    assert main([*arguments, *methods, "--json", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["method"] for each in found["candidates"]] and found["epochs"] == 9
    assert main([*arguments, "--methods", "[]"]) == 2 and "one method at least" in capsys.readouterr().err


def test_the_candidates_are_methods():
    for name in CANDIDATES:
        morphogen.methods.build_method(name)

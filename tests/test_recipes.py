"""The papers' recipes: against the papers, row by row; that they build, train, and finish when scaled."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from morphogen.cli import _parse, main
from morphogen.errors import ConfigError
from morphogen.methods import (
    AutoProg,
    Bert2BERT,
    Combined,
    Dense,
    Net2Net,
    NetworkExpansion,
    Prog,
    ProgStack,
    PruneTrain,
    StackBERT,
    Supernet,
    build_method,
)
from morphogen.recipes import TABLES, Row, Table, find_row, find_table
from morphogen.recipes.scaling import scaled
from morphogen.spec import parse_call
from morphogen.train.config import Recipe, TrainConfig
from morphogen.train.data import MemoryData
from morphogen.train.loop import Run
from morphogen.train.models import build_model
from morphogen.train.sources import load_data
from morphogen.train.tables import table_rows

import papers_table
from test_segmentation import IGNORED, write_images

ROWS = {f"{table.name}/{row.name}": row for table in TABLES for row in table.rows}
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000, "cityscapes": 19}


def typed():
    """Each line of the typed tables: name -> its other fields."""
    texts = {
        "network-expansion": papers_table.NETWORK_EXPANSION,
        "autoprog": papers_table.AUTOPROG,
        "prunetrain": papers_table.PRUNETRAIN,
    }
    lines = [(p, line) for p, text in texts.items() for line in text.splitlines() if line and line[0] != "#"]
    fields = [(paper, [field.strip() for field in line.split("|")]) for paper, line in lines]
    assert len({(paper, each[0]) for paper, each in fields}) == len(fields)
    return {f"{paper}/{each[0]}": each[1:] for paper, each in fields}


TYPED = typed()


def test_each_row_of_each_table_has_a_recipe():
    assert TYPED.keys() == ROWS.keys() and len(ROWS) == 160
    numbers = {paper: [t.number for t in TABLES if t.paper == paper] for paper in ("network-expansion", "prunetrain")}
    assert numbers == {"network-expansion": [*"123456"], "prunetrain": [*"1234"]}
    autoprog = [table.number for table in TABLES if table.paper == "autoprog"]
    assert autoprog == "2 3 4 5 6 7 8 I II III IV V VI VII VIII IX".split()
    assert all(table.hardware and table.title for table in TABLES)


def of_table(table):
    """The names of its rows."""
    return [f"{table.name}/{row.name}" for row in table.rows]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_recipes_have_the_papers_hyper_parameters(table):
    for name in of_table(table):
        row, (epochs, batch, lr, decay, network, method, _) = ROWS[name], TYPED[name]
        for key, value in {"epochs": epochs, "batch_size": batch, "lr": lr, "weight_decay": decay}.items():
            assert value == "-" or row.settings[key] == float(value), (name, key)
        is_network(row.settings["model"], network)
        if "Retrain" in row.settings["method"]:
            assert method == "retrain"
        else:
            is_method(build_method(row.settings["method"]), method)


def is_network(model, network):
    bare, arguments = parse_call(model.rpartition(":")[2])
    if network == "d0":
        assert (arguments["layers"], arguments["embed_dims"][1]) == ((4, 4, 8, 2), 256)
    elif bare == "DeepLabV3Plus":
        assert arguments == {"encoder_name": f"resnet{network}", "output_stride": 16}
    elif network in ("tiny", "small", "base"):
        assert bare == f"deit_{network}_patch16_224"
    else:
        assert re.fullmatch(rf"(cifar_)?(resnet|volo_)?{network}(_224)?", bare), bare


def is_method(method, words):
    kind, *rest = words.split()
    if kind == "dense":
        assert method == Dense()
    elif kind in ("width", "depth"):
        assert isinstance(method, NetworkExpansion)
        assert getattr(method, kind) == pytest.approx(float(rest[0]), abs=5e-4) and method.stages == int(rest[2])
        if kind == "width":
            assert method.operator == (rest[3] if len(rest) > 3 else "orthogonal")
    elif kind in ("prog", "auto"):
        assert isinstance(method, {"prog": Prog, "auto": AutoProg}[kind])
        assert (method.ratio, method.stages, method.decay) == (float(rest[0]), int(rest[2]), 0.998)
        known = {"random", "stack", "interpolate", "rezero", "mogrow"} & {*rest}
        assert method.depth_operator == (known.pop() if known else "mogrow")
        if "from" in rest:
            assert method.adaptive == tuple(map(float, rest[-3:]))
        if kind == "auto":
            assert method.recycle == ("wasteful" not in rest) and method.search_epochs == 2
    elif kind == "lasso":
        parts = method.methods if isinstance(method, Combined) else (method,)
        (pruned,) = (part for part in parts if isinstance(part, PruneTrain))
        assert ("batch" in rest) == (len(parts) == 2) and pruned.threshold == 1e-4
        ratio = float(rest[0]) if rest[0] != "every" else 0.2  # which the paper does not say for CIFAR
        assert pruned.ratio == ratio
        if "every" in rest:
            assert pruned.interval == int(rest[rest.index("every") + 1])
    else:
        kinds = {"net2net": Net2Net, "bert2bert": Bert2BERT, "stackbert": StackBERT, "progstack": ProgStack}
        assert isinstance(method, {**kinds, "supernet": Supernet}[kind])


PRINTED = {
    "network-expansion": "accuracy miou hours speedup",
    "autoprog": "flops flop_speedup hours speedup growth_accuracy accuracy accuracy_288 "
    "depth tokens randaugment erasing drop_path",
    "prunetrain": "accuracy gap finetuned_gap training_flops training_time training_time_v100 inference_flops "
    "removed_layers inference_speedup_10 inference_speedup_100",
    "prunetrain/4": "training_time training_time_v100 inference_flops gap",
}
"""The order in which tables print their figures."""


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_recipes_have_the_figures_that_the_paper_prints(table):
    order = PRINTED.get(table.name, PRINTED[table.paper]).split()
    for name in of_table(table):
        row = ROWS[name]
        assert {*row.paper} <= {*order}
        ours = [n for key in order if key in row.paper for n in numbers(str(row.paper[key]))]
        text = re.sub(r"(\d+)h (\d+)m", lambda m: f"{int(m[1]) + int(m[2]) / 60:.2f}", TYPED[name][-1])
        if table.paper == "autoprog":
            text = re.sub(r"\+([\d.]+)%", lambda m: f"{1 + float(m[1]) / 100:.3f}", text)
        assert ours == pytest.approx(numbers(text.replace("@288", "")), abs=1e-6), name


def numbers(text):
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*", text)]


def test_schedules_and_regularisation_are_the_papers():
    for name, row in ROWS.items():
        paper, s = name.partition("/")[0], row.settings
        if paper == "prunetrain":
            steps = parse_call(s["lr_schedule"])[1]
            cifar = row.data != "imagenet"
            assert steps["factor"] == 0.1
            assert [int(at * s["epochs"] + 0.5) for at in steps["at"]] == ([91, 137] if cifar else [30, 60])
            assert s["optimizer"] == "sgd"
        elif "deit" in s["model"] and not row.needs:
            assert (s["warmup_epochs"], s["mixup"], s["cutmix"], s["repeated_augmentation"]) == (5, 0.8, 1.0, 3)
            assert (s["drop_path"], s["randaugment"], s["erasing"]) == (0.1, 9, 0.25)
        elif "volo" in s["model"]:
            assert s["warmup_epochs"] == 20 and s["exclude"] == ["post_network"] and "mixup" not in s
            assert s["drop_path"] == (0.1 if "embed_dims=(128" in s["model"] else 0.2)
        if paper == "autoprog" and not row.needs:
            assert s.get("ema") == [0.998, 0.9986, 0.999, 0.9996] or "resnet50" in s["model"]
            plain = name in ("autoprog/IV/original", "autoprog/IV/autoprog")
            assert s["precision"] == ("float32" if plain else "bfloat16")
        if paper == "network-expansion":
            deeplab = "DeepLab" in s["model"]
            prunes = "PruneTrain" in s["method"]
            assert s["lr_schedule"] == "poly(power=0.9)" if deeplab else prunes or s["lr_schedule"] == "cosine"


# --- they build and train ------------------------------------------------------------------------------------


def random_data(row, settings, folder):
    """Ten images to learn from and two to test on, of the recipe's size and classes."""
    if row.data == "cityscapes":
        for part, count in (("train", 10), ("val", 2)):
            write_images(folder, part, count, (settings.image_size, settings.image_size))
        return load_data(replace(settings, data=f"segmentation:{folder}", ignored=IGNORED))
    size, classes = settings.image_size or 32, CLASSES[row.data]
    images = torch.randint(0, 256, (12, 3, size, size), dtype=torch.uint8)
    labels = torch.tensor([0, classes - 1, 1] * 4)
    return MemoryData("random", (images[:10], labels[:10]), (images[10:], labels[10:]), settings, crop=4, flip=True)


class Enough(Exception):
    pass


RUN = {name: row for name, row in ROWS.items() if "Retrain" not in row.settings["method"]}
IN_EVERY_RUN = ("prunetrain/1/cifar100-vgg11",)


def some(rows, chosen):
    return [pytest.param(name, marks=[] if name in chosen else pytest.mark.nightly) for name in rows]


@pytest.mark.parametrize("name", some(RUN, IN_EVERY_RUN))
def test_a_recipe_takes_two_steps_at_full_shape(name, tmp_path):
    row = RUN[name]
    settings = Recipe(**{k: v for k, v in row.settings.items() if k != "method"} | {"batch_size": 2, "workers": 0})
    settings = replace(settings, precision="float32", test_size=None, sparsity_map=[])
    data = random_data(row, settings, tmp_path)
    run = Run(settings, data, build_method(row.settings["method"]), "x", seed=0)
    take, losses = run.stepper.take, []

    def twice(images, labels):
        losses.append(take(images, labels))
        if len(losses) == 2:
            raise Enough
        return losses[-1]

    run.stepper.take = twice
    with pytest.raises(Enough):
        next(run.epochs())
    assert torch.stack(losses).isfinite().all()
    assert run.total_epochs == row.settings["epochs"] and len(run.averages) == len(settings.decays)


SMALL = ("prunetrain/1/cifar10-vgg11",)


@pytest.mark.parametrize(
    "name", some([name for name, row in RUN.items() if not row.needs and row.data != "cityscapes"], SMALL)
)
def test_a_recipe_finishes_when_scaled(name, tmp_path, capsys):
    arguments = ["--recipe", name, "--scale", "0.001", "--data", "digits", "--images", "160", "--test_images", "64"]
    arguments += ["--batch_size", "32", "--precision", "float32", "--output", str(tmp_path), "--workers", "0"]
    assert main(["train", *arguments]) == 0
    told = capsys.readouterr().out
    assert f"{name} scaled by 0.001: " in told and f"epochs {ROWS[name].settings['epochs']} -> " in told
    assert " 0.001 " in told and "tested on " in told


@cache
def size_of(model):
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(model, 10).parameters())


def test_each_scaled_recipe_is_smaller_in_everything():
    for name, row in RUN.items():
        for scale in (0.5, 0.05, 0.001):
            settings = scaled(row, scale)
            Recipe(**{key: value for key, value in settings.items() if key != "method"}, data="digits")  # not refused
            assert settings["image_size"] <= row.settings.get("image_size", 32)
            assert settings["epochs"] <= row.settings["epochs"] and settings["batch_size"] >= min(
                32, row.settings["batch_size"]
            )
            build = settings["method"]
            assert "decay" not in build and "interval" not in build and ("Retrain" in build or build_method(build))
            assert scale != 0.05 or 0 < size_of(settings["model"]) < size_of(row.settings["model"]) / 3, name


def test_scaling_by_hand():
    """ResNet-56 of Table 4 at 1/16: width and side a half, batch and rate a quarter."""
    row = ROWS["network-expansion/4/0.125"]
    settings = dict(scaled(row, 1 / 16))
    changed = {key: value for key, value in settings.items() if row.settings.get(key) != value}
    assert changed == {
        "epochs": 15,
        "images": 3125,
        "test_images": 1000,
        "batch_size": 32,
        "lr": 0.025,
        "model": "resnet56(shortcut='pad', width=8)",
        "image_size": 16,
        "warmup_epochs": 0,
        "workers": 2,
    }
    assert scaled(row, 1) == row.settings
    for bad in (0, 1.5, -1, float("nan")):
        with pytest.raises(ConfigError, match="scale out of range"):
            scaled(row, bad)


# --- on the command line -------------------------------------------------------------------------------------


def parsed(*arguments):
    return _parse(list(arguments))[1]


def test_what_the_command_line_says_wins_over_the_recipe_in_any_order():
    name = "network-expansion/4/0.375"
    whole = parsed("train", "--recipe", name, "--data", "digits")
    assert whole == TrainConfig(recipe=name, data="digits", **ROWS[name].settings)
    for arguments in (["--lr", "0.1", "--epochs", "20"], ["--epochs", "20", "--lr", "0.1"]):
        for first in (True, False):
            recipe = ["--recipe", "network-expansion/table4/0.375", "--data", "digits"]
            config = parsed("train", *(recipe if first else []), *arguments, *([] if first else recipe))
            assert config == replace(whole, epochs=20)
    assert parsed("train", "--data", "digits") == TrainConfig(data="digits")  # defaults where nothing is said


def test_a_recipe_may_be_named_in_a_file_too(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("recipe: prunetrain/1/cifar10-vgg11\nepochs: 3\ndata: digits\n")
    config = parsed("train", "--config", str(path))
    assert (config.epochs, config.model, config.weight_decay) == (3, "cifar_vgg11", 1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--recipe", "network-expansion/4/0.5"], "where the images are; expected --data cifar100:FOLDER"),
        (["train", "--recipe", "network-expansion/4/0.55", "--data", "digits"], "no row '0.55'.*Did you mean 0.5"),
        (["train", "--recipe", "network-expansion/7/0.5", "--data", "digits"], "no table 'network-expansion/7'"),
        (["train", "--recipe", "network-expansion/4", "--data", "digits"], "expected PAPER/TABLE/ROW"),
        (["train", "--recipe", "../4/0.5", "--data", "digits"], "no table"),
        (["train", "--scale", "0.1"], "only a recipe can be scaled"),
        (["train", "--recipe", "network-expansion/4/0.5", "--scale", "2", "--data", "digits"], "scale out of range"),
        (["train", "--recipe", "autoprog/VIII/retrain", "--data", "digits"], "expected --method: .*schedule.json"),
        (["train", "--recipe", "autoprog/3/original-cifar10", "--data", "x"], "expected --pretrained: the model.pt of"),
        (["train", "--recipe", "network-expansion/3/baseline"], "expected --data cityscapes:FOLDER"),
        (["compare", "--table", "network-expansion/4"], "where the images are"),
        (["compare", "--table", "autoprog/3", "--data", "x"], "no row of this table can be run"),
        (["compare", "--table", "network-expansion/4", "--data", "x", "--model", "resnet8"], "a table brings its own"),
        (["compare", "--table", "network-expansion/4", "--data", "x", "--methods", "[Prog]"], "a table brings its own"),
    ],
)
def test_a_recipe_that_cannot_be_says_so(arguments, words, capsys):
    assert main(arguments) == 2
    assert re.search(words, " ".join(capsys.readouterr().err.split()))


def test_the_list_has_every_row_and_figure(capsys):
    assert main(["recipes"]) == 0
    told = capsys.readouterr().out
    for table in TABLES:
        assert table.name in told and all(row.name in told for row in table.rows)
    assert main(["recipes", "network-expansion/table4/0.375", "--scale", "0.0625"]) == 0
    told = capsys.readouterr().out
    assert "75.6" in told and "1.52" in told and "1 GTX 1080 Ti" in told and "epochs: 15" in told
    assert main(["recipes", "prunetrain/3"]) == 0
    assert "AMC" in capsys.readouterr().out


def test_names_are_found_however_they_are_written():
    for name in ("autoprog/ii", "autoprog/TableII", "AutoProg/II/"):
        assert find_table(name).name == "autoprog/II"
    assert find_row("prunetrain/table3/prunetrain")[1].name == "prunetrain"


# --- whole tables --------------------------------------------------------------------------------------------

SHORT = {"model": "resnet8(width=4)", "epochs": 3, "batch_size": 64, "lr_schedule": "cosine"}


def toy(monkeypatch):
    rows = [
        Row("dense", SHORT | {"method": "Dense"}, {"accuracy": 50.0, "speedup": 1.0}, "cifar10"),
        Row("grown", SHORT | {"method": "NetworkExpansion(stages=2)"}, {"accuracy": 49.0, "speedup": 1.3}, "cifar10"),
        Row("slow", SHORT | {"method": "Dense", "lr": 0.01}, {"accuracy": 40.0}, "cifar10", baseline="dense"),
        Row("slowly", SHORT | {"method": "PruneTrain", "lr": 0.01}, {"gap": -1.0, "inference_flops": 30}, "cifar10"),
        Row("other", SHORT | {"method": "Dense"}, {"accuracy": 20.0}, "cifar100"),
        Row("later", SHORT | {"method": "Dense"}, {"accuracy": 10.0}, "cifar10", needs={"time": "to wait"}),
    ]
    monkeypatch.setattr("morphogen.recipes.TABLES", [Table("toy", "1", "Toys", "a desk", rows)])


def test_a_table_has_the_papers_figures_beside_the_measured(monkeypatch, tmp_path, capsys):
    toy(monkeypatch)
    arguments = ["compare", "--table", "toy/1", "--data", "digits", "--images", "256", "--output", str(tmp_path)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    records = {r["recipe"]: r for r in json.loads((tmp_path / "results.json").read_text())}
    assert [*records] == ["toy/1/dense", "toy/1/grown", "toy/1/slow", "toy/1/slowly"]
    dense, grown, slow, slowly = records.values()
    assert grown["paper"] == {"accuracy": 49.0, "speedup": 1.3} and grown["scale"] is None
    assert dense["measured"]["speedup"] == 1 and dense["measured"]["gap"] == 0
    assert grown["measured"]["flop_speedup"] > 1 > slow["measured"]["flop_speedup"] - 0.01
    assert slow["measured"]["gap"] == slow["measured"]["accuracy"] - dense["measured"]["accuracy"]
    assert slowly["measured"]["inference_flops"] == 100  # three epochs prune nothing
    assert dense["protocol"] == "whole test images at 16 pixels"
    summary = (tmp_path / "summary.md").read_text()
    assert "top-1 %, paper | top-1 %, here" in summary and "best epoch %" in summary
    assert "At full scale. Not run: later (needs --time); other (is of cifar100)." in summary
    assert "49" in told and "1.3" in told
    before = (tmp_path / "dense" / "runs.jsonl").read_text()
    assert main(arguments) == 0 and (tmp_path / "dense" / "runs.jsonl").read_text() == before  # gone on with


def test_a_scaled_table_has_flops_in_place_of_hours():
    record = {
        "recipe": "toy/1/grown",
        "scale": 0.02,
        "paper": {"hours": 2.0, "speedup": 1.3},
        "measured": {"hours": 0.01, "speedup": 0.9, "flop_speedup": 1.25, "best": 40.0},
    }
    (row,) = table_rows([record])
    assert row == {
        "row": "grown",
        "hours, paper": "2",
        "FLOP speedup, here": "1.25",
        "speedup, paper": "1.3",
        "speedup, here": "0.9",
        "best epoch %": "40",
    }
    (whole,) = table_rows([record | {"scale": None}])
    assert whole["hours, here"] == "0.01" and "FLOP speedup, here" not in whole


def test_rows_of_the_data_that_are_given_run(monkeypatch):
    toy(monkeypatch)
    comparison = parsed("compare", "--table", "toy/1", "--data", "cifar100:somewhere", "--lr", "0.5")
    assert [row.name for group in comparison.groups for row in group.rows] == ["other"]
    assert comparison.groups[0].config.lr == 0.5 and comparison.output == Path("runs/compare")


def test_a_recipe_beside_its_dense_network():
    config = parsed("compare", "--recipe", "network-expansion/4/0.375", "--data", "digits")
    assert config.methods == ["NetworkExpansion(width=0.375, stages=6, operator='orthogonal')"]
    assert (config.epochs, config.model) == (240, "resnet56(shortcut='pad')")

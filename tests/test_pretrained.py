"""Weights to begin with: read safely, whatever file they are in, and part of what a run is known by."""

import json
import re
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from morphogen.cli import _parse, main
from morphogen.errors import ConfigError
from morphogen.methods import build_method
from morphogen.train import models
from morphogen.train.pretrained import begin_with, known_as

SMALL = """--data digits --model resnet8(width=8) --images 256 --test_images 32 --epochs 2 --batch_size 64
    --method Dense""".split()


class Net(nn.Module):
    """Ten channels, as many as the classes of the digits."""

    def __init__(self, num_classes=10, channels=10):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def same(model, tensors, but=()):
    own = model.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in tensors.items() if name not in but)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the command line, of ten classes."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *SMALL, "--output", str(folder)]) == 0
    return folder


def written(kind, tensors, folder):
    """The same weights in each of the files that there are."""
    path = folder / f"{kind}.pt"
    if kind == "safetensors":
        save_file = pytest.importorskip("safetensors.torch").save_file
        path = folder / "weights.safetensors"
        save_file(tensors, path)
    elif kind == "of a script":
        torch.save({"epoch": 3, "best": 0.5, "model": tensors, "optimizer": {"state": {}}}, path)
    elif kind == "of DistributedDataParallel, compiled":
        torch.save({"state_dict": {f"module._orig_mod.{name}": t for name, t in tensors.items()}}, path)
    elif kind == "in half precision":
        torch.save({name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}, path)
    elif kind == "before counters":
        torch.save({name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}, path)
    else:
        torch.save(tensors, path)
    return str(path)


KINDS = "plain", "safetensors", "of a script", "of DistributedDataParallel, compiled", "before counters"


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_that_has_the_weights_gives_them(kind, tmp_path):
    tensors = Net().state_dict()
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begin_with(model, written(kind, tensors, tmp_path), "Net", 10)
    assert same(model, tensors)


def test_half_precision_becomes_the_models(tmp_path):
    tensors, model = Net().state_dict(), Net()
    begin_with(model, written("in half precision", tensors, tmp_path), "Net", 10)
    assert model.conv.weight.dtype == torch.float32 and torch.equal(model.conv.weight, tensors["conv.weight"].half())


def test_a_classifier_of_other_classes_begins_anew_and_one_line_says_so(tmp_path):
    tensors, model = Net(1000).state_dict(), Net(10)
    fresh = model.fc.weight.detach().clone()
    path = written("plain", tensors, tmp_path)
    with pytest.warns(
        UserWarning, match=r"the classifier \(fc\.weight, fc\.bias\) is for 1000 classes, not 10"
    ) as told:
        begin_with(model, path, "Net", 10)
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert same(model, tensors, but=("fc.weight", "fc.bias")) and torch.equal(model.fc.weight, fresh)
    for name in ("fc.weight", "fc.bias"):
        del tensors[name]
    with pytest.warns(UserWarning, match="is not among them; it begins anew"):
        begin_with(model, written("plain", tensors, tmp_path), "Net", 10)


class Anchored(nn.Module):
    """A detector's heads: classes for each of three anchors, a box for each class, boxes for each anchor."""

    def __init__(self, num_classes, channels=12):
        super().__init__()
        self.conv, self.of_anchors = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 3 * num_classes, 3)
        self.score, self.of_classes = nn.Linear(channels, num_classes), nn.Linear(channels, 4 * num_classes)
        self.of_boxes = nn.Conv2d(channels, 3 * 4, 3)


def test_a_detectors_heads_begin_anew_with_other_classes(tmp_path):
    tensors, model = Anchored(91).state_dict(), Anchored(3)
    path = written("plain", tensors, tmp_path)
    with pytest.warns(UserWarning, match=r"of_anchors.weight.*is for 91 classes, not 3; it begins anew"):
        begin_with(model, path, "Anchored", 3, boxes=True)
    heads = [f"{head}.{kind}" for head in ("of_anchors", "score", "of_classes") for kind in ("weight", "bias")]
    assert same(model, tensors, but=heads)
    with pytest.raises(ConfigError, match="are not this model's"):  # of a classifier no multiple is one
        begin_with(Anchored(3), path, "Anchored", 3)
    headless = {name: tensor for name, tensor in tensors.items() if not name.startswith("conv")}
    with pytest.raises(ConfigError, match="conv"):  # twelve channels are four times three classes, and no head
        begin_with(Anchored(3), written("plain", headless, tmp_path), "Anchored", 3, boxes=True)
    pruned = written("plain", Anchored(91, channels=8).state_dict(), tmp_path)
    with pytest.raises(ConfigError, match="are not this model's"):
        begin_with(Anchored(3), pruned, "Anchored", 3, boxes=True)


def test_a_whole_model_is_refused_and_its_message_says_what_to_write(tmp_path):
    torch.save(Net(), tmp_path / "whole.pt")
    with pytest.raises(ConfigError, match=r"more than tensors.*Net; write torch.save\(model.state_dict") as refused:
        begin_with(Net(), str(tmp_path / "whole.pt"), "Net", 10)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (lambda t: t.update(more=torch.zeros(1)), "more"),
        (lambda t: t.pop("conv.bias"), "conv.bias"),  # as long as there are classes, and no classifier's
        (lambda t: t.update({"conv.bias": torch.zeros(12)}), "conv.bias"),
        (lambda t: t.update({"fc.weight": torch.zeros(1000, 12), "fc.bias": torch.zeros(1000)}), "fc.weight"),
        (lambda t: t.update({"fc.weight": torch.zeros(1000, 10), "fc.bias": torch.zeros(7)}), "fc."),
        (lambda t: t.update({"conv.weight": t["conv.weight"].to(torch.complex64)}), "conv.weight"),
        (lambda t: t.update({"conv.weight": t["conv.weight"].round().long()}), "conv.weight"),
        (lambda t: t["norm.running_var"].fill_(torch.nan), "norm.running_var"),
        (lambda t: t.update(Net(channels=16).state_dict()), "conv.weight"),
    ],
)
def test_anything_else_that_does_not_fit_is_refused_in_one_line(damage, where, tmp_path):
    tensors, model = Net().state_dict(), Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    damage(tensors)
    with pytest.raises(ConfigError, match=where) as refused:
        begin_with(model, written("plain", tensors, tmp_path), "Net", 10)
    assert "\n" not in str(refused.value) and same(model, before)


class Evil:
    def __reduce__(self):
        return print, ("never",)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", Evil(), [], {}, {"model": 3}, {"state_dict": {"a": [1]}}, {"conv.weight": 3}, torch.zeros(3)],
)
def test_files_that_hold_no_weights(content, tmp_path, capsys):
    path = tmp_path / "weights.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ConfigError, match=r"cannot read the weights|no state dict in the file"):
        begin_with(Net(), str(path), "Net", 10)
    (tmp_path / "weights.safetensors").write_bytes(b"\x00" * 20)
    for name in ("none.pt", "none.safetensors", "weights.safetensors", "."):
        with pytest.raises(ConfigError, match="cannot read the weights"):
            begin_with(Net(), str(tmp_path / name), "Net", 10)
    assert capsys.readouterr().out == ""


def test_weights_of_timm_and_torchvision(monkeypatch):
    """What the libraries would fetch is planted; of other models none are known."""
    torch.manual_seed(1)
    planted = torchvision.models.resnet18(num_classes=1000)

    def fetch(name):
        def build(*, weights=None, num_classes=1000):
            assert weights in (None, "DEFAULT")
            return planted if weights else torchvision.models.resnet18(num_classes=num_classes)

        return build

    monkeypatch.setattr(models.torchvision.models, "get_model_builder", fetch)
    model = models.build_model("torchvision:resnet18", 10)
    with pytest.warns(UserWarning, match=r"weights of torchvision:resnet18.*is for 1000 classes, not 10"):
        begin_with(model, True, "torchvision:resnet18", 10)
    assert same(model, planted.state_dict(), but=("fc.weight", "fc.bias"))

    def create(name, pretrained, **arguments):
        if pretrained:
            raise RuntimeError("no network here")
        return Net(**arguments)

    monkeypatch.setattr(models.timm, "create_model", create)
    with pytest.raises(ConfigError, match=r"its weights cannot be had .*no network here"):
        begin_with(Net(), True, "timm:resnet18", 10)
    for text in ("resnet8(width=8)", "test_pretrained:Net"):
        with pytest.raises(ConfigError, match=r"no weights are known of this model.*--pretrained FILE"):
            begin_with(Net(), True, text, 10)
    begin_with(Net(), False, "anything", 10)


def test_a_run_begins_with_the_weights_of_another_and_knows_them_by_content(trained, tmp_path, capsys):
    """Another name is the same run, other weights are another."""
    weights, other = tmp_path / "first.pt", tmp_path / "other.pt"
    shutil.copy(trained / "model.pt", weights)
    tensors = torch.load(weights, weights_only=True)["state_dict"]
    torch.save({name: tensor * 2 for name, tensor in tensors.items()}, other)
    assert known_as(str(weights)) == known_as(str(trained / "model.pt")) != known_as(str(other))
    command = ["train", *SMALL, "--lr", "1e-9", "--output", str(tmp_path / "run"), "--pretrained"]
    assert main([*command, str(weights)]) == 0
    begun = json.loads((trained / "results.json").read_text())[0]["epochs"][-1]["accuracy"]
    assert json.loads((tmp_path / "run" / "results.json").read_text())[0]["epochs"][0]["accuracy"] == pytest.approx(
        begun, abs=5
    )
    moved = tmp_path / "moved.pt"
    weights.rename(moved)
    assert main([*command, str(moved), "--resume", "true"]) == 0
    assert "is finished" in capsys.readouterr().out
    for path, said in ((other, "other settings"), (weights, "cannot read the weights")):
        assert main([*command, str(path), "--resume", "true"]) == 2
        assert said in capsys.readouterr().err


def test_a_comparison_of_other_weights_is_another(trained, tmp_path, capsys):
    command = ["compare", *SMALL[:-2], "--methods", "['GrowOnce(pretrained=True, width=0.5)']", "--output"]
    command += [str(tmp_path / "runs"), "--lr", "0.01", "--budgets", "[1]", "--pretrained"]
    assert main([*command, str(trained / "model.pt")]) == 0
    line = json.loads((tmp_path / "runs" / "runs.jsonl").read_text().split("\n")[0])
    assert line["recipe"]["pretrained"] == known_as(str(trained / "model.pt"))
    assert str(trained) not in json.dumps(line)  # no path of a machine in results that are shared
    torch.save(torch.load(trained / "model.pt", weights_only=True)["state_dict"], tmp_path / "other.pt")
    assert main([*command, str(tmp_path / "other.pt")]) == 2
    assert "runs of another recipe" in capsys.readouterr().err


def test_a_pruned_networks_file_says_why_it_does_not_fit(tmp_path):
    tensors = Net(channels=7).state_dict()
    torch.save({"state_dict": tensors, "subnetwork": "{}", "model": "Net"}, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="a network that Morphogen has trained, perhaps pruned"):
        begin_with(Net(), str(tmp_path / "model.pt"), "Net", 10)


FINE_TUNING = (Path(__file__).parent.parent / "docs" / "fine_tuning.md").read_text()


def test_the_methods_of_the_page_on_fine_tuning_can_be_made():
    commands = re.findall(r"^morphogen (.*)$", FINE_TUNING, re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        _, config = _parse(shlex.split(command))
        assert config.pretrained
        for method in [config.method] if hasattr(config, "method") else config.methods:
            build_method(method)

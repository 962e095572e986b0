"""Trained networks leave: safetensors with the sub-network, `torch.export`, ONNX; and come back."""

import copy
import json
import shutil
import sys
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import morphogen
from morphogen.cli import main
from morphogen.train.loop import Run
from morphogen.train.models import build_model
from test_train import SMALL

from checks import perturb
from nets import Plain, Residual, Tower


def resnet():
    return torchvision.models.resnet18(num_classes=10)


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, num_heads=2, depth=4, num_classes=10
    )


def every_third_out(net):
    """Irregular widths: of every second group, each third channel goes."""
    return net.subnetwork(
        alive={group.name: [unit for unit in range(group.size) if unit % 3] for group in net.groups[::2]}, depth=0.5
    )


CASES = {
    "narrow and shallow": (Tower, 8, lambda net: net.subnetwork(width=0.5, depth=0.5)),
    "irregular": (resnet, 32, every_third_out),
    "shallow, at another resolution": (vit, 32, lambda net: net.subnetwork(depth=0.5, resolution=24)),
}


@pytest.fixture(
    params=[
        pytest.param(case, id=name, marks=pytest.mark.nightly if name == "irregular" else [])
        for name, case in CASES.items()
    ],
    scope="module",
)
def part(request):
    """A trained part of a network, what builds the dense one, and its input size."""
    build, size, choose = request.param
    net = morphogen.trace(build(), torch.zeros(2, 3, size, size))
    target = choose(net)
    assert target != net.dense
    morphogen.morph(net, target)
    perturb(net.model)
    return net, build, target.resolution[0]


def same(one, other, *examples):
    """Whether two models compute the same, bit for bit."""
    with torch.no_grad():
        return all(torch.equal(one.eval()(example), other.eval()(example)) for example in examples)


def test_saved_and_loaded_onto_the_ordinary_constructor(part, tmp_path):
    net, build, size = part
    path = tmp_path / "part.safetensors"
    morphogen.save(net, path, notes={"who": "me"})
    assert [file.name for file in tmp_path.iterdir()] == ["part.safetensors"]
    dense = build()
    model = morphogen.load(dense, path)
    assert model is dense and model.training
    assert same(model, net.model, torch.randn(3, 3, size, size))
    assert {name: t.shape for name, t in load_file(path).items()} == {n: t.shape for n, t in model.state_dict().items()}
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert morphogen.SubNetwork.from_json(said["subnetwork"]) == net.current
    assert said["who"] == "me" and said["morphogen"] == morphogen.__version__


def test_programs_compute_the_same_at_any_batch_size(part, tmp_path):
    net, _, size = part
    model, example = net.model.train(), torch.zeros(1, 3, size, size)
    before = copy.deepcopy(model.state_dict())
    morphogen.save_program(model, example, tmp_path / "part.pt2")
    morphogen.save_onnx(model, example, tmp_path / "part.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["part.onnx", "part.pt2"]
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    program = torch.export.load(tmp_path / "part.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, size, size]
    model.eval()
    for batch in (1, 5):
        images = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            expected = model(images)
            torch.testing.assert_close(program(images), expected, rtol=1e-5, atol=1e-5)
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


# --- odd corners ------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two convolutions with one weight; called by keyword."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)
        self.b.weight = self.a.weight

    def forward(self, image):
        return self.fc(torch.relu(self.b(torch.relu(self.a(torch.relu(self.stem(image)))))).mean((2, 3)))


def test_tied_weights_and_keyword_inputs(tmp_path):
    image = torch.randn(2, 3, 4, 4)
    net = morphogen.trace(Tied(), {"image": image})
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.save(net, tmp_path / "x.safetensors")
    model = morphogen.load(Tied(), tmp_path / "x.safetensors")
    assert model.a.weight is model.b.weight and model.a.out_channels == 4
    assert same(model, net.model, image)
    morphogen.save_program(model, {"image": image}, tmp_path / "x.pt2")
    program = torch.export.load(tmp_path / "x.pt2").module()
    torch.testing.assert_close(program(image=image[:1]), model(image[:1]))


def test_an_input_that_is_not_tensors_alone_is_given_again(tmp_path):
    class Scaled(Plain):
        def forward(self, x, factor):
            return factor * super().forward(x)

    example = (torch.randn(2, 3, 8, 8), 2.0)
    net = morphogen.trace(Scaled(), example)
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.save(net, tmp_path / "x.safetensors")
    refused(Scaled(), tmp_path / "x.safetensors", "give load(..., example=)")
    model = morphogen.load(Scaled(), tmp_path / "x.safetensors", example=example)
    assert torch.equal(model.eval()(*example), net.model.eval()(*example))


def test_excluded_modules_are_excluded_again(tmp_path):
    net = morphogen.trace(Residual(), torch.zeros(2, 3, 8, 8), exclude=["conv1"])
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.save(net, tmp_path / "x.safetensors")
    assert same(morphogen.load(Residual(), tmp_path / "x.safetensors"), net.model, torch.randn(2, 3, 8, 8))


def test_precision_memory_format_and_hooks_stay_the_models_own(tmp_path):
    image = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    net = morphogen.trace(Residual().to(torch.bfloat16), image)
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.save(net, tmp_path / "x.safetensors")
    refused(Residual(), tmp_path / "x.safetensors", "torch.float32, as in the model, found torch.bfloat16")
    dense, seen = Residual().to(torch.bfloat16).to(memory_format=torch.channels_last).eval(), []
    dense.conv1.register_forward_hook(lambda *_: seen.append(1))
    model = morphogen.load(dense, tmp_path / "x.safetensors")
    assert not seen and same(model, net.model, image) and seen
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last) and not model.training


def test_averaged_weights_and_a_resumed_life(tmp_path):
    model = Tower()
    average = AveragedModel(model)
    net = morphogen.trace(model, torch.zeros(2, 3, 8, 8))
    morphogen.morph(net, net.subnetwork(depth=0.5), ema=average)
    perturb(model)
    morphogen.save(net, tmp_path / "x.safetensors", ema=average)
    loaded = morphogen.load(Tower(), tmp_path / "x.safetensors")
    assert same(loaded, average.module, torch.randn(2, 3, 8, 8))
    assert not same(loaded, model, torch.randn(2, 3, 8, 8))
    outdated = AveragedModel(Tower())
    with pytest.raises(morphogen.SubNetworkError, match="the tensor is not what the sub-network says"):
        morphogen.save(net, tmp_path / "x.safetensors", ema=outdated)


def test_factors_of_a_method_at_work_are_not_saved(tmp_path):
    net = morphogen.trace(Tower(), torch.zeros(2, 3, 8, 8))
    morphogen.morph(net, net.subnetwork(depth=0.5))
    morphogen.morph(net, net.dense, depth_operator="rezero")
    with pytest.raises(morphogen.SubNetworkError, match=r"rezero: .*expected no such tensor"):
        morphogen.save(net, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_extra_state_is_refused(tmp_path):
    class Noting(Plain):
        def get_extra_state(self):
            return {"since": "yesterday"}

    net = morphogen.trace(Noting(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(morphogen.SubNetworkError, match="_extra_state: a module's extra state is not a tensor"):
        morphogen.save(net, tmp_path / "x.safetensors")
    morphogen.save(morphogen.trace(Plain(), torch.zeros(2, 3, 8, 8)), tmp_path / "x.safetensors")
    refused(Noting(), tmp_path / "x.safetensors", "_extra_state: a module's extra state is not a tensor")


# --- bad input --------------------------------------------------------------------------------------------


def refused(model, path, *words):
    """Loading fails with one line that says all this, and the model is as it was."""
    before = [(name, tensor, tensor.clone()) for name, tensor in named(model)]
    text = str(model)
    with pytest.raises(morphogen.ExportError) as caught:
        morphogen.load(model, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message, message
    for word in words:
        assert word in message, message
    assert str(model) == text
    for (name, now), (expected, tensor, value) in zip(named(model), before, strict=True):
        assert name == expected and now is tensor and torch.equal(now, value), name


def named(model):
    return [*model.named_parameters(), *model.named_buffers()]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    net = morphogen.trace(Tower(), torch.zeros(2, 3, 8, 8))
    morphogen.morph(net, net.subnetwork(width=0.5, depth=0.5))
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    morphogen.save(net, path)
    return path


@pytest.fixture
def saved(small, tmp_path):
    """A file to spoil."""
    return Path(shutil.copy(small, tmp_path))


def changed(path, tensors=None, **metadata):
    """The file with other tensors or metadata; None takes a key out."""
    with safe_open(path, "pt") as file:
        said = file.metadata() | metadata
    said = {name: text for name, text in said.items() if text is not None}
    save_file({**load_file(path), **(tensors or {})}, path, said)
    return path


def test_files_that_cannot_be_read(saved, tmp_path):
    refused(Tower(), tmp_path / "no.safetensors", "no such file")
    refused(Tower(), tmp_path, "cannot read the file")
    whole = saved.read_bytes()
    for content in (b"", b"PK\x03\x04 what", whole[:100], whole[:-1], b"\xff" * 8 + whole[8:]):
        saved.write_bytes(content)
        refused(Tower(), saved, "cannot read the file", "a safetensors file, whole", "cut short")


@pytest.mark.parametrize(
    "metadata",
    [
        {"subnetwork": None},
        {"subnetwork": "{"},
        {"subnetwork": "[]"},
        {"subnetwork": '{"channels": {"a": "b"}, "blocks": {}, "resolution": null}'},
        {"exclude": "{"},
        {"example": None},
        {"example": '[[[2, 3, 8, 8], "float33"]]'},
        {"example": '[[[2, -3, 8, 8], "float32"]]'},
        {"example": '[[[2, 3, 8, 8], "load"]]'},
        {"example": "7"},
    ],
)
def test_metadata_that_say_nothing(saved, metadata):
    refused(Tower(), changed(saved, **metadata), "the metadata name no sub-network", "written by morphogen.save")


def test_files_of_others(saved):
    save_file(load_file(saved), saved)
    refused(Tower(), saved, "the metadata name no sub-network")


def test_weights_of_another_model(saved):
    refused(resnet(), saved, "the weights are another model's", "this ResNet", "as it was built for training")


def test_a_sub_network_that_is_not_a_part_of_the_model(saved):
    with safe_open(saved, "pt") as file:
        said = json.loads(file.metadata()["subnetwork"])
    for key, entry, words in [
        ("channels", {"nowhere": "0:2"}, "nowhere: no such channel group"),
        ("channels", {next(iter(said["channels"])): "0:9999"}, "bad unit indices"),
        ("channels", {next(iter(said["channels"])): "0:1"}, "the tensor is not what the sub-network says"),
        ("blocks", {"blocks": ""}, "must keep at least one block"),
        ("blocks", {"blocks": "0:1"}, "blocks."),
    ]:
        other = said | {key: said[key] | entry}
        refused(Tower(), changed(saved, subnetwork=json.dumps(other)), "does not fit this Tower", words)


def test_another_size_of_the_same_model(tmp_path):
    net = morphogen.trace(Tower(), torch.zeros(2, 3, 8, 8))
    morphogen.save(net, tmp_path / "x.safetensors")
    other = Tower()
    other.fc = nn.Linear(other.fc.in_features, 7)
    refused(other, tmp_path / "x.safetensors", "fc.bias", "shape (7,), found shape (10,)")
    smaller = net.model
    morphogen.morph(net, net.subnetwork(width=0.5))
    refused(smaller, tmp_path / "x.safetensors", "does not fit this Tower", "before anything else changes it")


def test_missing_tensors(saved):
    tensors = load_file(saved)
    with safe_open(saved, "pt") as file:
        said = file.metadata()
    del tensors["fc.bias"]
    save_file(tensors, saved, said)
    refused(Tower(), saved, "fc.bias: the tensor is not what the sub-network says", "found none")


def test_what_cannot_be_written_leaves_the_old_file(saved, tmp_path):
    net = morphogen.trace(Tower(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(morphogen.ExportError, match="cannot write the file"):
        morphogen.save(net, tmp_path / "no" / "x.safetensors")
    with pytest.raises(morphogen.ExportError, match="cannot write the file"):
        morphogen.save(net, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [saved.name]


def test_models_that_cannot_be_exported(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    for save in (morphogen.save_program, morphogen.save_onnx):
        with pytest.raises(morphogen.ExportError, match=r"cannot read this model .*any size") as caught:
            save(Branching(), torch.zeros(2, 3), tmp_path / "x")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_code_that_reads_the_size_of_the_batch_is_exported_for_that_size(tmp_path):
    """As the heads of YOLO do, which keep their anchors until the shape of the images is another."""

    class Counting(nn.Module):
        def forward(self, x):
            return x + (1 if x.shape[0] == 3 else 2)

    images = torch.zeros(3, 2)
    with pytest.warns(UserWarning, match="takes batches of the example's size alone"):
        morphogen.save_program(Counting(), images, tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    assert torch.equal(program(images), images + 1)
    with pytest.raises((AssertionError, RuntimeError)):
        program(torch.zeros(2, 2))
    with pytest.warns(UserWarning, match="takes batches of the example's size alone"):
        morphogen.save_onnx(Counting(), images, tmp_path / "program.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "program.onnx")
    assert session.get_inputs()[0].shape == [3, 2]
    assert (session.run(None, {session.get_inputs()[0].name: images.numpy()})[0] == 1).all()


@pytest.mark.parametrize("package", ["safetensors", "onnx", "onnxscript"])
def test_missing_packages_are_named(package, saved, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    calls = [
        lambda: morphogen.load(Tower(), saved),
        lambda: morphogen.save(morphogen.trace(Tower(), torch.zeros(2, 3, 8, 8)), saved),
    ]
    if package != "safetensors":
        calls = [lambda: morphogen.save_onnx(Tower(), torch.zeros(2, 3, 8, 8), saved)]
    for call in calls:
        with pytest.raises(morphogen.ExportError, match=rf"'{package}.*pip install 'morphogen\[export\]'"):
            call()


# --- the command line -------------------------------------------------------------------------------------


def test_a_run_stopped_while_small_leaves_by_the_command_line(tmp_path, capsys, monkeypatch):
    def stopped(self, number):
        if number == 1:
            raise KeyboardInterrupt
        return once(self, number)

    once = Run._train_epoch
    monkeypatch.setattr(Run, "_train_epoch", stopped)
    run, out = tmp_path / "run", tmp_path / "out"
    method = ["--epochs", "4", "--method", "NetworkExpansion(width=0.5, stages=2)", "--ema", "0.9"]
    assert main(["train", *SMALL, *method, "--output", str(run)]) == 130
    capsys.readouterr()
    assert main(["export", str(run), "--onnx", "true", "--program", "true", "--output", str(out)]) == 0
    files = ["model.safetensors", "model.onnx", "model.pt2"]
    assert sorted(file.name for file in out.iterdir()) == sorted(files)
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == [str(out / f) for f in files]
    with safe_open(out / "model.safetensors", "pt") as file:
        said = file.metadata()
    assert said["model"] == "resnet8(width=8)" and said["num_classes"] == "10"
    assert len(json.loads(said["mean"])) == len(json.loads(said["std"])) == 3
    model = morphogen.load(build_model(said["model"], int(said["num_classes"])), out / "model.safetensors").eval()
    assert model.conv1.out_channels == 4
    stored = torch.load(run / "model.pt", weights_only=True)["state_dict"]  # the average's, which was tested
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.export.load(out / "model.pt2").module()(images), expected)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_bad_runs_are_one_line(tmp_path, capsys):
    def says(*words):
        assert main(["export", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and all(word in error for word in words), error
        assert not (tmp_path / "out").exists()

    says("model.pt: no trained network there", "output folder of `morphogen train`")
    for content in (b"", b"what", b"PK\x03\x04"):
        (tmp_path / "model.pt").write_bytes(content)
        says("cannot read the file")
    for content in ([], {"state_dict": {}}, {"subnetwork": "{}", "state_dict": nn.Linear(2, 2).state_dict()}):
        torch.save(content, tmp_path / "model.pt")
        says("not a trained network")
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")  # a pickle of code is not run
    says("cannot read the file")
    assert (
        main(["train", *SMALL, "--epochs", "1", "--method", "Dense", "--overwrite", "true", "--output", str(tmp_path)])
        == 0
    )
    capsys.readouterr()
    whole = torch.load(tmp_path / "model.pt", weights_only=True)
    torch.save(whole | {"model": "resnet8(width=4)"}, tmp_path / "model.pt")
    says("model.pt: does not fit this CifarResNet", "conv1: bad unit indices")
    torch.save(whole | {"model": "nothing"}, tmp_path / "model.pt")
    says("no model 'nothing'")

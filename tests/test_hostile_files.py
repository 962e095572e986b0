"""Every file that is read: refused by an error of ours with nothing changed and nothing run, or loaded as it says."""

import io
import json
import random
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_safetensors
from torch import nn

import morphogen
from morphogen.cli import _parse, main
from morphogen.errors import ConfigError, ExportError, MorphogenError, SubNetworkError
from morphogen.integrations.hooks import saved_state
from morphogen.machine.reading import parse_json, read_pickle
from morphogen.schedule.saved import SavedSchedule
from morphogen.train.checkpoint import _digest, read, write
from morphogen.train.config import CompareConfig, Recipe
from morphogen.train.export import load_run
from morphogen.train.finished import Finished
from morphogen.train.images import read_image
from morphogen.train.models import build_noted
from morphogen.train.sources import load_data
from morphogen.train.token_labels.label_maps import About, LabelMaps

import hostile
from nets import Tower
from traced import traced_once

FEW, MANY = 12, 500


def same(one, other):
    """Equal through lists, dictionaries and tensors; a number that is none equals itself."""
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def covers(said, found):
    """Whether all that was found is what the file says, which may say more."""
    if isinstance(found, dict):
        return all(covers(said[key], value) for key, value in found.items())
    if isinstance(found, (list, tuple)):
        return len(said) == len(found) and all(map(covers, said, found))
    return said == found


class Safetensors:
    """A network that leaves and comes back."""

    def __init__(self, folder):
        self.path = folder / "x.safetensors"
        net = morphogen.trace(Tower(), torch.zeros(2, 3, 8, 8))
        morphogen.morph(net, net.subnetwork(width=0.5, depth=0.5))
        morphogen.save(net, self.path)
        self.content = self.path.read_bytes()

    def mutant(self, dice):
        return hostile.safetensors_of(self.content, dice)

    def load(self):
        model = Tower()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        try:
            morphogen.load(model, self.path)
        except MorphogenError:
            assert same(before, model.state_dict())
            raise
        assert same(load_safetensors(self.path.read_bytes()), dict(model.state_dict()))


class Trained:
    """`model.pt`."""

    def __init__(self, folder):
        self.path = folder / "model.pt"
        arguments = [
            "--data",
            "digits",
            "--model",
            "resnet8(width=4)",
            "--epochs",
            "1",
            "--images",
            "64",
            "--batch_size",
            "64",
        ]
        arguments += ["--image_size", "8", "--method", "Dense", "--test_images", "20", "--device", "cpu"]
        assert main(["train", *arguments, "--output", str(folder)]) == 0
        self.content = self.path.read_bytes()
        self.tree = torch.load(self.path, weights_only=True)

    def mutant(self, dice):
        if dice.random() < 0.3:
            return hostile.bytes_of(self.content, dice)
        file = io.BytesIO()
        torch.save(hostile.pickled_of(self.tree, dice), file)
        return file.getvalue()

    def load(self):
        network, *_ = load_run(self.path)
        assert same(dict(torch.load(self.path, weights_only=True)["state_dict"]), dict(network.model.state_dict()))


class Pickled(Trained):
    """A state in another trainer's checkpoint."""

    def load(self):
        assert same(saved_state(self.path), torch.load(self.path, weights_only=True))


class Checkpoint:
    """A checkpoint, with a right checksum too: whoever writes a hostile one can compute it."""

    def __init__(self, folder):
        self.path = folder / "checkpoint"
        self.state = {"run": {"lr": "0.1"}, "at": (1, 2), "losses": [0.5, float("nan")], 3: {"w": torch.randn(3, 2)}}
        write(self.path, self.state)
        self.content = self.path.read_bytes()

    def mutant(self, dice):
        if dice.random() < 0.5:
            return hostile.safetensors_of(self.content, dice)
        size = int.from_bytes(self.content[:8], "little")
        header = json.loads(self.content[8 : 8 + size])
        said = header["__metadata__"]
        said["tree"] = hostile.text_of(said["tree"], dice).decode(errors="replace")
        said["sha256"] = _digest(said["tree"], load_safetensors(self.content))
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + self.content[8 + size :]

    def load(self):
        with hostile.nothing_runs():
            state = read(self.path)
        again = self.path.with_name("again")
        write(again, state)  # what was loaded is what the file says
        assert same(read(again), state)


class Schedule:
    """`schedule.json`."""

    def __init__(self, folder):
        self.path = folder / "schedule.json"
        dense = morphogen.SubNetwork({"conv1": tuple(range(8))}, {"blocks": (0, 1, 2)}, (32, 32))
        small = morphogen.SubNetwork({"conv1": (0, 1, 5)}, {"blocks": (0,)}, (16, 16))
        settings = {
            "operator": "he",
            "depth_operator": "momentum",
            "decay": None,
            "horizon": 0.1,
            "resizing": "fourier",
        }
        schedule = SavedSchedule(3, ((0, small), (1, dense)), settings, ((0.5, 0.5, 1.0),) * 3)
        self.text = json.dumps(schedule.to_dict())

    def mutant(self, dice):
        return hostile.text_of(self.text, dice)

    def load(self):
        found = SavedSchedule.load(self.path).to_dict()
        assert covers(json.loads(self.path.read_text()), found)


class Maps:
    """`label_maps.json`."""

    def __init__(self, folder):
        self.path = folder / "label_maps.json"
        LabelMaps.create(folder, About("t (1)", ("a", "b", "c"), 2, (3, 3)))
        self.text = self.path.read_text()

    def mutant(self, dice):
        return hostile.text_of(self.text, dice)

    def load(self):
        about, said = LabelMaps.open(self.path.parent).about, json.loads(self.path.read_text())
        assert [about.teacher, [*about.classes], about.top_k, [*about.grid]] == [
            said[key] for key in ("teacher", "classes", "top_k", "grid")
        ]


class Map(Maps):
    """The label map of one image."""

    def __init__(self, folder):
        super().__init__(folder)
        self.maps = LabelMaps.open(folder)
        self.maps.write("x", torch.randn(2, 3, 3), torch.randint(3, (2, 3, 3)))
        self.path = folder / "x.safetensors"
        self.content = self.path.read_bytes()

    def mutant(self, dice):
        return hostile.safetensors_of(self.content, dice)

    def load(self):
        scores, classes = self.maps.read("x")
        said = load_safetensors(self.path.read_bytes())
        assert same(scores, said["scores"]) and torch.equal(classes, said["classes"].int())


class Runs:
    """`runs.jsonl` of a comparison."""

    def __init__(self, folder):
        self.path = folder / "runs.jsonl"
        self.config = CompareConfig(data="digits", output=folder, images=64, batch_size=64, device="cpu")
        self.data = load_data(self.config)
        self.finished = Finished(self.config, self.data)
        self.finished.append(RECORD)
        self.text = self.path.read_text().strip()

    def mutant(self, dice):
        return hostile.text_of(self.text, dice) + b"\n"

    def load(self):
        before = self.path.read_bytes()
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("morphogen.train.finished.environment", lambda device: {})  # which asks git
                found = Finished(self.config, self.data).records
        finally:
            assert self.path.read_bytes() == before
        assert [*found.values()] == [json.loads(line) for line in before.decode().split("\n") if line]


class Settings:
    """YAML for `--config`."""

    def __init__(self, folder):
        self.path = folder / "x.yaml"
        self.tree = {"model": "resnet8(width=4)", "epochs": 3, "lr": 0.1, "exclude": ["a", "b"], "method": "Dense"}

    def mutant(self, dice):
        return hostile.text_of(json.dumps(self.tree), dice)

    def load(self):
        command, settings = _parse(["train", "--config", str(self.path)])
        assert command.name == "train" and settings.epochs >= 1


class Picture:
    """An image."""

    def __init__(self, folder):
        self.path = folder / "x.png"
        pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        files = []
        for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF"):
            files.append(io.BytesIO())
            Image.fromarray(pixels).save(files[-1], kind)
        self.contents = [file.getvalue() for file in files]

    def mutant(self, dice):
        return hostile.bytes_of(dice.choice(self.contents), dice)

    def load(self):
        image = read_image(str(self.path))
        assert image.mode == "RGB" and image.size[0] * image.size[1] <= 2**28


STAGE = {
    "epoch": 0,
    "resolution": [8, 8],
    "parameters": 9,
    "training_flops": 9,
    "batch_size": 4,
    "steps": 1,
    "images": 4,
}
RECORD = {
    "method": "Dense", "model": "m", "data": "d", "seed": 0, "accuracy": 50.0, "stopped": None, "training_seconds": 1.5,
    "seconds": {"step": 1.5}, "flops": 9, "samples": 4, "peak_memory": 5, "schedule": None, "predicted_speedup": None,
    "epochs": [{"epoch": 0, "loss": 1.0, "accuracy": 50.0, "seconds": 1.5}], "morphs": [], "stages": [STAGE],
    "history": [], "searches": [], "rescues": [], "pruned": None, "budget": 1.0,
}  # fmt: skip
FORMATS = [Safetensors, Trained, Pickled, Checkpoint, Schedule, Maps, Map, Runs, Settings, Picture]


def try_out(make, count, folder):
    """Refused and loaded."""
    with traced_once():
        file = make(folder)
        refused = 0
        for seed in range(count):
            content = file.mutant(random.Random(f"{make.__name__} {seed}"))
            file.path.write_bytes(content)
            try:
                file.load() if make is Checkpoint else _quietly(file.load)
            except MorphogenError as error:
                refused += 1
                assert str(error).isprintable() and len(str(error)) < 4100
            except BaseException as error:
                raise AssertionError(f"mutant {seed} of {make.__name__}: {type(error).__name__}") from error
            assert file.path.read_bytes() == content
    return refused, count - refused


def _quietly(load):
    with hostile.nothing_runs():
        load()


@pytest.mark.parametrize("make", FORMATS)
def test_mutants_are_refused_or_loaded_as_they_say(make, tmp_path):
    refused, _ = try_out(make, FEW, tmp_path)
    assert refused


@pytest.mark.nightly
@pytest.mark.parametrize("make", FORMATS)
def test_five_hundred_mutants(make, tmp_path):
    refused, loaded = try_out(make, MANY, tmp_path)
    print(f"{make.__name__}: {refused} refused, {loaded} loaded")
    assert refused and loaded


def test_a_mutant_that_runs_something_is_seen(tmp_path):
    with pytest.raises(AssertionError, match="open"), hostile.nothing_runs():
        (tmp_path / "x").write_text("")


@pytest.mark.parametrize(
    "note",
    ["os:system(command='touch RAN')", "posix:mkdir(path='RAN')", "hf-hub:timm/x", "timm:hf-hub:a/b", "local-dir:/tmp",
     "timm:resnet18(checkpoint_path='x.pt')", "timm:resnet18(pretrained=True)", "resnet18(weights='DEFAULT')",
     "timm:resnet18(pretrained_cfg={'file': 'x'})", "resnet8(width=99999999)", "resnet8(width=60000)",
     "resnet8(width=(((((1,),),),),))", "resnet8(" + "(" * 5000, "resnet8(width={[]: 1})", "a" * 20000],
)  # fmt: skip
def test_a_file_names_no_code_no_weights_and_nothing_huge(note, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError), hostile.nothing_runs():
        build_noted(note, 10)
    assert not list(tmp_path.iterdir())


def test_a_short_text_names_few_units():
    for text in ("0:999999999", "0:16777217", "5:3", "0:2,1:3", "-1:2", "0:1_0"):
        with pytest.raises(SubNetworkError, match="not a sub-network"):
            morphogen.SubNetwork.from_dict({"channels": {"a": text}, "blocks": {}, "resolution": None})
    for sides in ([3], [0, 8], [10**6, 8], ["8", "8"], [8.5, 8]):
        with pytest.raises(SubNetworkError, match="not a sub-network"):
            morphogen.SubNetwork.from_dict({"channels": {}, "blocks": {}, "resolution": sides})


def test_json_is_bounded():
    assert parse_json('{"a": [1, 2.5]}') == {"a": [1, 2.5]}
    for text in ("[" * 40 + "]" * 40, "[" * 10**6, "NaN", "[1e999]", '{"a": 1, "a": 2}', "9" * 5000):
        with pytest.raises(ValueError):
            parse_json(text)


def test_a_compressed_pickle_is_refused(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(10**6)}}, tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a") as old, zipfile.ZipFile(tmp_path / "b", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry.filename))
    assert (tmp_path / "b").stat().st_size < 10**5
    with pytest.raises(ValueError, match="compressed"):
        read_pickle(tmp_path / "b")
    assert read_pickle(tmp_path / "a")["state_dict"]["w"].shape == (10**6,)


def png(width, height, rows):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_an_image_that_eats_the_memory_is_named(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(20000, 20000, bytes(2501) * 20000))
    assert (tmp_path / "bomb.png").stat().st_size < 10**5
    with pytest.raises(ConfigError, match=r"bomb\.png: cannot read the image .*400000000 pixels.*smaller"):
        read_image(str(tmp_path / "bomb.png"))


def test_no_program_is_started_for_an_image(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ConfigError, match="cannot read the image"), hostile.nothing_runs():
        read_image(str(tmp_path / "x.png"))


def test_sixteen_bits_are_scaled(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.tiff")
    images = [np.asarray(read_image(str(tmp_path / name))) for name in ("8.png", "16.png", "16.tiff")]
    assert all(np.array_equal(image, images[0]) for image in images) and images[0].max() == 255
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "f.tiff")
    with pytest.raises(ConfigError, match=r"f\.tiff.*no known range"):
        read_image(str(tmp_path / "f.tiff"))


@pytest.mark.parametrize("wrong", ["weight", "running_var"])
def test_a_network_that_is_not_finite_stays(wrong, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    model[1].register_buffer("mask", torch.tensor([0.0, -torch.inf]))  # which is what masks are made of
    net = morphogen.trace(model, torch.zeros(2, 3, 8, 8))
    morphogen.save(net, tmp_path / "fine")
    with torch.no_grad():
        getattr(model[1], wrong)[2] = float("nan" if wrong == "weight" else "inf")
    images = torch.zeros(2, 3, 8, 8)
    for leave in (
        lambda: morphogen.save(net, tmp_path / "x"),
        lambda: morphogen.save_onnx(model, images, tmp_path / "x"),
        lambda: morphogen.save_program(model, images, tmp_path / "x"),
    ):
        with pytest.raises(ExportError, match=rf"1\.{wrong}: the network is not finite"):
            leave()
    assert [path.name for path in tmp_path.iterdir()] == ["fine"]


def test_one_class_is_said_and_missing_ones_too(tmp_path):
    for part in ("train", "val"):
        for number, label in enumerate("ab"):
            (tmp_path / "two" / part / label).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "two" / part / label / f"{i}.png")
            if not number:
                (tmp_path / "one" / part).mkdir(parents=True)
                (tmp_path / "one" / part / label).mkdir()
                Image.new("RGB", (8, 8)).save(tmp_path / "one" / part / label / "0.png")
    load_data(Recipe(data=str(tmp_path / "two"), batch_size=2, device="cpu"))
    with pytest.raises(ConfigError, match=r"all training images are of one class.*train/CLASS/IMAGE"):
        load_data(Recipe(data=str(tmp_path / "one"), batch_size=1, device="cpu"))
    with pytest.warns(UserWarning, match=r"digits: \d of 10 classes have no training image"):
        load_data(Recipe(data="digits", images=8, batch_size=4, device="cpu"))

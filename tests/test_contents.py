"""A run that goes on knows its data by what is in it: other data are refused, the same in another place are not."""

import os
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image

from morphogen.cli import main
from morphogen.errors import CheckpointError, ConfigError
from morphogen.methods import Dense
from morphogen.train import contents
from morphogen.train.checkpoint import Checkpoints
from morphogen.train.config import TrainConfig
from morphogen.train.contents import compare_contents, known_as, of_arrays, of_files
from morphogen.train.loop import Run
from morphogen.train.sources import load_data


def files(root, count=6, side=4):
    """Images without compression, all of one size in bytes."""
    root.mkdir()
    for i in range(count):
        Image.new("RGB", (side, side), (i, 7, 9)).save(root / f"{i}.bmp")
    return [(str(root / f"{i}.bmp"), i % 2) for i in range(count)]


def of(root):
    return of_files("the images", str(root), [(str(path), int(path.stem) % 2) for path in sorted(root.iterdir())])


def swapped(root):
    (root / "0.bmp").rename(root / "x"), (root / "1.bmp").rename(root / "0.bmp"), (root / "x").rename(root / "1.bmp")


def edited(root):
    """Its size stays, and so does its date."""
    path, when = root / "3.bmp", (root / "3.bmp").stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))


CHANGES = {
    "a name": (lambda root: (root / "0.bmp").rename(root / "10.bmp"), "other names"),
    "one less": (lambda root: (root / "5.bmp").unlink(), "other bytes of 5 of"),
    "a size": (lambda root: Image.new("RGB", (5, 5)).save(root / "2.bmp"), "other sizes"),
    "two exchanged": (swapped, "other bytes of 6 of the images"),
    "a byte": (edited, "other bytes of 6 of the images"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_files_are_refused_by_what_differs(name, tmp_path):
    change, message = CHANGES[name]
    files(tmp_path / "a")
    before = of(tmp_path / "a")
    compare_contents(before, of(tmp_path / "a"))
    change(tmp_path / "a")
    with pytest.raises(CheckpointError, match=message):
        compare_contents(before, of(tmp_path / "a"))
    assert known_as(before) != known_as(of(tmp_path / "a"))


def test_the_same_files_elsewhere_are_the_same(tmp_path, recwarn):
    files(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with their dates
    compare_contents(of(tmp_path / "a"), of(tmp_path / "b"))
    assert not recwarn
    os.utime(tmp_path / "b" / "1.bmp", (1, 1))
    with pytest.warns(UserWarning, match="other dates than when the run was started; .* so the run resumes"):
        compare_contents(of(tmp_path / "a"), of(tmp_path / "b"))
    assert known_as(of(tmp_path / "a")) == known_as(of(tmp_path / "b"))


def test_labels_and_arrays_count(tmp_path):
    samples = files(tmp_path / "a")
    other = [(path, 1 - label) for path, label in samples]
    one, two = (of_files("x", str(tmp_path / "a"), each) for each in (samples, other))
    assert [key for key in one if one[key] != two[key]] == ["names of x"]
    array = torch.arange(12, dtype=torch.uint8).view(3, 4)
    assert of_arrays({"x": array}) == of_arrays({"x": array.clone()}) == of_arrays({"x": array.t().contiguous().t()})
    for changed in (array.view(4, 3), array + (array == 5)):
        assert of_arrays({"x": array}) != of_arrays({"x": changed})
    with pytest.raises(ConfigError, match=r"gone.*nowhere\.bmp"):
        of_files("x", str(tmp_path), [(str(tmp_path / "nowhere.bmp"), 0)])


def test_it_is_quick(tmp_path, monkeypatch):
    """What it costs a file: a million must not take minutes."""
    samples = files(tmp_path / "a", 1) * 50_000
    monkeypatch.setattr(contents, "LOOKED_AT", 1)
    begin = time.process_time()
    of_files("x", str(tmp_path / "a"), samples)
    assert time.process_time() - begin < 4  # 80 s for a million, on a machine that is ten times too busy


@pytest.mark.parametrize("side", [16, 80], ids=["in memory", "decoded"])
def test_a_checkpoint_of_other_images_is_refused(side, tmp_path, capsys):
    """Of the same names and number; in compare the finished runs as well."""
    noise = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in "ab":
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for i in range(8):
                pixels = noise.integers(0, 256, (side, side + i // 4 * (side > 64), 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / label / f"{i}.png")
    config = TrainConfig(
        "resnet8(width=4)", str(tmp_path / "data"), image_size=16, epochs=1, batch_size=8, workers=0, output=tmp_path
    )

    def run():
        return Run(config, load_data(config), Dense(), "Dense", 0, checkpoints=Checkpoints(tmp_path, every=1e9))

    state = run().state_dict()
    run().load_state_dict(state)
    compare = ["compare", "--model", "resnet8(width=4)", "--data", str(tmp_path / "data"), "--image_size", "16"]
    compare += ["--epochs", "1", "--batch_size", "8", "--methods", "[Prog(stages=1)]", "--output", str(tmp_path / "c")]
    assert side > 64 or main(compare) == 0
    path = tmp_path / "data" / "val" / "b" / "7.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[8] = 255 - pixels[8]
    Image.fromarray(pixels).save(path)
    with pytest.raises(
        CheckpointError, match=r"the data are not those that the run was started with.*found other .*test"
    ):
        run().load_state_dict(state)
    assert side > 64 or main(compare) == 2
    assert side > 64 or "another recipe; expected data_known_as" in capsys.readouterr().err

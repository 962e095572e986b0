"""The file of a checkpoint: what goes in comes out, and whatever has happened to it is noticed."""

import json
import os
import pickle
import random
import re
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from morphogen.cli import main
from morphogen.errors import CheckpointError
from morphogen.train import checkpoint
from morphogen.train.checkpoint import Checkpoints, read, write

SHARED = torch.randn(3)
STATE = {
    "plain": [1, 2.5, "text", None, True, {"deeper": []}],
    "nan": float("inf"),
    "betas": (0.9, 0.999),
    "by number": {0: {"step": torch.tensor(3.0)}, 1: SHARED},
    "again": SHARED,
    "image": torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last),
    "half": torch.randn(5).bfloat16(),
    "part": torch.arange(12).view(3, 4)[:, 1:3],
    "empty": torch.empty(0, 4),
    "$": "a key like any other",
}


def assert_equal(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    else:
        assert left == right


def test_what_goes_in_comes_out(tmp_path):
    write(tmp_path / "a", STATE)
    state = read(tmp_path / "a")
    assert_equal(state, STATE)
    assert state["again"] is state["by number"][1]
    with pytest.raises(AssertionError):
        assert_equal(state, STATE | {"half": STATE["half"] + 1})


def test_what_is_neither_data_nor_tensor_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be saved.*found function"):
        write(tmp_path / "a", {"hook": print and (lambda: None)})
    assert not list(tmp_path.iterdir())


class Code:
    """A pickle that does something when it is read."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def rewritten(content, change):
    """A file with another header, of the right length."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def swapped(header):
    """The places of two tensors of one size are exchanged."""
    names = [name for name in header if name != "__metadata__"]
    sizes = {}
    for name in names:
        entry = header[name]
        key = entry["dtype"], tuple(entry["shape"])
        if key in sizes:
            header[name], header[sizes[key]] = header[sizes[key]], header[name]
            return
        sizes[key] = name
    raise AssertionError("nothing to exchange")


def another_tree(header):
    tree = json.loads(header["__metadata__"]["tree"])
    tree["nan"] = 0.0
    header["__metadata__"]["tree"] = json.dumps(tree)


def old_format(header):
    header["__metadata__"]["format"] = "morphogen checkpoint 0"


def no_hash(header):
    del header["__metadata__"]["sha256"]


def test_two_hundred_damaged_files_are_refused(tmp_path, monkeypatch):
    """Cut, flipped, exchanged, of another version, no checkpoint at all, and a pickle with code in it."""
    monkeypatch.chdir(tmp_path)
    whole = tmp_path / "whole"
    write(whole, STATE | {"twin": torch.randn(3)})
    content, dice = whole.read_bytes(), random.Random(0)
    damaged = [content[: dice.randrange(len(content))] for _ in range(90)]
    for _ in range(90):
        place = dice.randrange(len(content))
        damaged.append(content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :])
    damaged += [rewritten(content, change) for change in (swapped, another_tree, old_format, no_hash)]
    damaged += [content + b"more", content[8:], b"", b"{}", pickle.dumps(Code()), pickle.dumps(STATE["plain"])]
    damaged += [bytes(dice.randrange(256) for _ in range(dice.randrange(1, 2000))) for _ in range(10)]
    assert len(damaged) == 200
    for number, data in enumerate(damaged):
        Path("file").write_bytes(data)  # a path without the test's name
        message = r"^file: (not a checkpoint, or a damaged one|written by another version)"
        with pytest.raises(CheckpointError, match=message) as refused:
            read(Path("file"))
        assert "\n" not in str(refused.value), number
    assert not (tmp_path / "executed").exists()
    assert_equal(read(whole)["plain"], STATE["plain"])


OTHER_FILES = {
    "an older format": (
        old_format,
        r"written by another version of Morphogen; expected morphogen checkpoint 1, found morphogen checkpoint 0\. "
        r"Continue with that version, or start over",
    ),
    "two tensors exchanged": (swapped, r"damaged one \(ValueError: its checksum is another one\)"),
    "another tree": (another_tree, r"damaged one \(ValueError: its checksum is another one\)"),
    "no checksum": (no_hash, r"damaged one \(KeyError: 'sha256'\)"),
    "weights alone": (lambda header: header.update(__metadata__={"format": "pt"}), r"written by another.*found pt"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_of_another_kind_says_what_it_is(tmp_path, name):
    change, message = OTHER_FILES[name]
    write(tmp_path / "a", STATE | {"twin": torch.randn(3)})
    (tmp_path / "a").write_bytes(rewritten((tmp_path / "a").read_bytes(), change))
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "a")


def test_the_last_few_stay_and_a_damaged_one_gives_way_to_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", every=0, keep=3)
    assert checkpoints.latest() is None
    for step in range(5):
        checkpoints.after_step(1, step, lambda step=step: {"step": step})
    assert [path.name[-10:] for path in checkpoints.files()] == [f"{n:07}.safetensors"[-10:] for n in (4, 3, 2)]
    checkpoints.files()[0].write_bytes(b"cut")
    with pytest.warns(UserWarning, match="the one before it"):
        assert checkpoints.latest() == {"step": 3}
    for path in checkpoints.files():
        path.write_bytes(b"cut")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="damaged"):
        checkpoints.latest()
    checkpoints.clear()
    assert checkpoints.latest() is None


def test_what_a_killed_process_had_begun_to_write_goes(tmp_path):
    checkpoints, begun = Checkpoints(tmp_path, every=0, keep=1), tmp_path / ".epoch-00000-step-0000001.safetensors.part"
    for clean in (lambda: checkpoints.after_step(0, 2, dict), checkpoints.clear):
        begun.write_bytes(b"cut")
        assert checkpoints.latest() == ({} if checkpoints.files() else None)
        clean()
        assert not begun.exists()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, every=0)
    checkpoints.after_step(0, 1, lambda: {"step": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left.*the last one stays"):
        checkpoints.after_step(0, 2, lambda: {"step": 2})
    assert checkpoints.latest() == {"step": 1} and len(list(tmp_path.iterdir())) == 1


class Wide(nn.Sequential):
    """177 kB of weights, 50 kB at half the width; a checkpoint has as much again of moments."""

    def __init__(self, num_classes):
        convs = [nn.Conv2d(3, 96, 3), nn.ReLU(), nn.Conv2d(96, 48, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*convs, nn.Linear(48, num_classes))


@contextmanager
def room_for(size):
    """No file may become larger than so many bytes, as on a disk that is full."""
    before, writes = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # which would be cut off, and stay so
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = writes


def test_a_disk_that_fills_up_while_a_run_grows(tmp_path, capsys):
    """The small network's checkpoints fit, the grown one's do not, and at last its weights do not either."""
    settings = "--data digits --model test_checkpoint:Wide --images 32 --test_images 9 --batch_size 16".split()
    settings += ["--epochs", "2", "--save_every", "0"]
    arguments = ["train", *settings, "--method", "NetworkExpansion(stages=2)", "--output", str(tmp_path)]
    with room_for(150_000):
        assert main(arguments) == 2
    *warned, last = capsys.readouterr().err.splitlines()
    assert warned and all("no checkpoint could be saved" in line and "the last one stays" in line for line in warned)
    assert re.search(r"model\.pt: cannot write the file \(RuntimeError: .*\)$", last), last
    assert not (tmp_path / "model.pt").exists() and not (tmp_path / "results.json").exists()
    assert not list(tmp_path.rglob("*.part")) and len(list(tmp_path.glob("checkpoints/*"))) > 0
    assert main([*arguments, "--resume", "true"]) == 0  # once there is room again
    assert len(json.loads((tmp_path / "results.json").read_text())[0]["epochs"]) == 2
    capsys.readouterr()
    with room_for(300):  # for nothing but the weights' own error
        assert main([*arguments, "--epochs", "1", "--method", "Dense", "--save_every", "9", "--overwrite", "true"]) == 2
    removed, last = capsys.readouterr().err.splitlines()
    assert "--overwrite removes results.json, model.pt, schedule.json" in removed
    assert re.search(r"model\.pt: cannot write the file \(OSError: .*\)$", last), last
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]  # not even a part of it


def test_a_folder_that_may_not_be_written_to_is_one_line(tmp_path, capsys, monkeypatch):
    def refuses(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    arguments = [
        "train",
        "--data",
        "digits",
        "--model",
        "test_checkpoint:Wide",
        "--images",
        "128",
        "--batch_size",
        "64",
        "--epochs",
        "1",
    ]
    arguments += ["--method", "Dense", "--output", str(tmp_path)]
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "epoch-00000-step-0000001.safetensors").write_bytes(b"of another user")
    arguments += ["--overwrite", "true"]
    for method in ("unlink", "touch"):  # root may write anywhere
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, refuses)
            assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "Permission denied" in error, error


def test_time_decides_when(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, every=10, keep=9)
    for step, now[0] in enumerate((5, 9, 10, 19, 21)):
        checkpoints.after_step(0, step, dict)
    assert [int(path.stem[-7:]) for path in checkpoints.files()] == [4, 2]

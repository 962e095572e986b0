"""An output folder has one owner at a time; what is in it is gone on with, kept, or removed because one says so."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from morphogen.cli import main
from morphogen.errors import ConfigError
from morphogen.machine import folder as folders
from morphogen.machine.folder import NAME, owned

TINY = "--data digits --model test_folder:Tiny --images 64 --test_images 20 --batch_size 32".split()


class Tiny(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
        )


def train(folder, *more):
    return main(["train", *TINY, "--epochs", "2", "--method", "Dense", "--output", str(folder), *more])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def another(folder, code):
    """A process that owns a folder, says so, and goes on with `code`."""
    lines = f"""
        import os, subprocess, sys, time
        from pathlib import Path
        from morphogen.machine import folder
        folder._machine = lambda: {folders._machine()!r} if 'here' in {code!r} else 'elsewhere 1'
        folder.BEAT = 0.05
        with folder.owned(Path({str(folder)!r})):
            print('owned', flush=True)
            {code}
    """
    text = "\n".join(line[8:] for line in lines.splitlines())
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "owned\n"
    return process


@pytest.fixture
def without_locks(monkeypatch):
    """As on a file system that has none, or keeps them to one machine."""
    monkeypatch.setattr(folders, "fcntl", None)
    monkeypatch.setattr(folders, "BEAT", 0.05)
    monkeypatch.setattr(folders, "SILENCE", 0.6)
    monkeypatch.setattr(folders, "SETTLING", 0.1)


def test_a_folder_has_one_owner_and_a_dead_one_keeps_nothing(tmp_path):
    """Also where a process that it has forked, as PyTorch's loader does, lives on."""
    process = another(tmp_path, "'here'; os.fork() or time.sleep(3); time.sleep(60)")
    with pytest.raises(ConfigError, match=rf"another process is writing.*found process {process.pid} on .*--output"):
        with owned(tmp_path):
            pass
    process.kill()
    process.wait()
    with owned(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()}"), owned(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_what_was_made_for_nothing_goes_again(tmp_path):
    with pytest.raises(ZeroDivisionError), owned(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / NAME).exists()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with owned(tmp_path / "c"):
        (tmp_path / "c" / "kept").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["kept"]


def test_without_a_lock_signs_of_life_tell(tmp_path, without_locks):
    process = another(tmp_path, "time.sleep(60)")
    with pytest.warns(UserWarning, match="on elsewhere wrote there last; waiting"):
        with pytest.raises(ConfigError, match="another process is writing"), owned(tmp_path):
            pass
    process.kill()  # held up for good
    process.wait()
    with pytest.warns(UserWarning, match="waiting 0.6 s"), owned(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_does_not_reach_another_machine_is_not_trusted(tmp_path, without_locks, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(folders, "SILENCE", 0.3)
    note = {"machine": "elsewhere 1", "process": 1, "mark": ""}
    (tmp_path / NAME).write_text(json.dumps(note))
    with pytest.warns(UserWarning, match=r"process 1 on elsewhere wrote there last; waiting 0.3 s"), owned(tmp_path):
        pass
    (tmp_path / NAME).write_text(json.dumps(note | {"machine": folders._machine()}))
    with owned(tmp_path):  # here the lock is enough: no wait, no warning
        pass


def test_one_that_was_taken_over_removes_nothing(tmp_path):
    with owned(tmp_path):
        (tmp_path / NAME).write_text("another's")
    assert (tmp_path / NAME).read_text() == "another's"


def test_two_that_find_a_dead_owner_at_once(tmp_path, without_locks, monkeypatch):
    monkeypatch.setattr(folders.time, "sleep", lambda _: (tmp_path / NAME).write_text("the other one's"))
    with pytest.raises(ConfigError, match="another process is writing"), owned(tmp_path):
        pass


# --- train ------------------------------------------------------------------------------------------------


def test_a_finished_run_stays(tmp_path, capsys):
    assert train(tmp_path) == 0
    before = contents(tmp_path)
    for more in ([], ["--epochs", "1"], ["--seed", "1"]):
        assert train(tmp_path, *more) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "a run that is finished" in error
        assert all(way in error for way in ("--output", "--overwrite", "--resume"))
    assert train(tmp_path, "--resume", "true") == 0
    assert "is finished" in capsys.readouterr().out
    assert train(tmp_path, "--resume", "true", "--lr", "0.3") == 2
    assert "other settings; expected lr 0.3, as here, found 0.1" in capsys.readouterr().err
    assert train(tmp_path, "--resume", "true", "--overwrite", "true") == 2
    assert contents(tmp_path) == before
    (tmp_path / "model.safetensors").touch()
    assert train(tmp_path, "--overwrite", "true", "--model", "resnet5O") == 2  # a slip removes nothing
    assert {**before, Path("model.safetensors"): b""} == contents(tmp_path)
    capsys.readouterr()
    assert train(tmp_path, "--overwrite", "true", "--epochs", "1") == 0
    said = capsys.readouterr().err
    pictures = "training.png, classes.csv, confusion.csv, confusion.png"
    assert (
        f"{tmp_path}: --overwrite removes results.json, model.pt, schedule.json, {pictures}, model.safetensors\n"
        in said
    )
    assert len(json.loads((tmp_path / "results.json").read_text())[0]["epochs"]) == 1
    assert not (tmp_path / "model.safetensors").exists()


def stopped(folder, monkeypatch, *more, number=signal.SIGTERM):
    """A run that is asked to stop in its first epoch."""
    from morphogen.train.stepper import Stepper

    once = Stepper.take
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", lambda *args: [os.kill(os.getpid(), number), once(*args)][1])
        return train(folder, *more)


def test_a_stopped_run_is_gone_on_with_or_refused(tmp_path, monkeypatch, capsys):
    assert stopped(tmp_path, monkeypatch) == 143
    error = capsys.readouterr().err
    told = "stopped by SIGTERM, saved in epoch 1 after step 1; continue with the same command and --resume"
    assert error == f"morphogen: {told}\n"
    before = contents(tmp_path)
    for more in ([], ["--save_every", "3600"], ["--lr", "0.3"]):
        assert train(tmp_path, *more) == 2
        error = capsys.readouterr().err
        assert "a run that was stopped" in error and "--resume" in error and "--overwrite" in error
    assert train(tmp_path, "--resume", "true", "--lr", "0.3") == 2 and "lr 0.3, as here" in capsys.readouterr().err
    for command in (["compare", *TINY, "--epochs", "2"], ["compare", *TINY, "--epochs", "2", "--overwrite", "true"]):
        assert main([*command, "--methods", "[Prog(stages=1)]", "--output", str(tmp_path)]) == 2
        assert "holds a run of `morphogen train`" in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert train(tmp_path, "--resume", "true") == 0 and train(tmp_path / "whole") == 0
    one, other = (torch.load(f / "model.pt", weights_only=True)["state_dict"] for f in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one) and not list(tmp_path.glob("checkpoints/*"))


def test_ctrl_c_says_where_and_how_to_go_on(tmp_path, monkeypatch, capsys):
    assert stopped(tmp_path, monkeypatch, number=signal.SIGINT) == 130
    assert "stopped by SIGINT, saved in epoch 1 after step 1; continue with" in capsys.readouterr().err

    def twice(*_):
        os.kill(os.getpid(), signal.SIGINT), os.kill(os.getpid(), signal.SIGINT)

    from morphogen.train.stepper import Stepper

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", twice)
        assert train(tmp_path, "--resume", "true") == 130
    error = capsys.readouterr().err
    assert (
        error == "morphogen: stopped by SIGINT, last saved in epoch 1 after step 1; continue with the same command and "
        "--resume\n"
    )
    assert json.loads((tmp_path / "results.json").read_text())[0]["stopped"]  # which is not finished, though written
    assert train(tmp_path, "--resume", "true") == 0


def test_a_run_that_fails_outside_its_epochs_is_not_finished(tmp_path, monkeypatch):
    from morphogen.commands.watching import Watching

    with monkeypatch.context() as patch:
        patch.setattr(Watching, "tell", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path)
    assert "ZeroDivisionError" in json.loads((tmp_path / "results.json").read_text())[0]["stopped"]


def test_killed_between_the_last_word_and_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    """Results are written, checkpoints not yet removed: it is finished. Without the record it is not."""
    from morphogen.train.checkpoint import Checkpoints

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "clear", lambda self: None)
        assert train(tmp_path, "--save_every", "0") == 0
    before = contents(tmp_path)
    assert len(list(tmp_path.glob("checkpoints/*"))) == 2
    (tmp_path / "results.json").unlink()
    assert train(tmp_path) == 2 and "was stopped" in capsys.readouterr().err
    assert train(tmp_path, "--resume", "true") == 0  # from its last step
    assert not list(tmp_path.glob("checkpoints/*"))
    for path, content in before.items():
        (tmp_path / path).write_bytes(content)
    assert train(tmp_path, "--resume", "true") == 0 and "is finished" in capsys.readouterr().out
    assert not list(tmp_path.glob("checkpoints/*")) and (tmp_path / "model.pt").read_bytes() == before[Path("model.pt")]


def test_two_processes_in_one_folder(tmp_path, capsys):
    """Whatever they do there."""
    process = another(tmp_path, "'here'; time.sleep(60)")
    commands = [
        ["train", *TINY, "--overwrite", "true"],
        ["compare", *TINY, "--epochs", "2"],
        ["compare", *TINY, "--epochs", "2", "--budgets", "[0.5, 1]", "--parallel", "2"],
    ]
    for command in commands:
        assert main([*command, "--output", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"another process is writing there; found process {process.pid} on" in error
    process.kill()
    process.wait()


# --- compare and export -----------------------------------------------------------------------------------


def test_compare_keeps_what_is_there_and_removes_it_when_told(tmp_path, capsys):
    def compare(*more):
        method = ["--methods", "[NetworkExpansion(stages=2)]", "--output", str(tmp_path)]
        return main(["compare", *TINY, "--epochs", "2", *method, *more])

    assert compare() == 0
    before = (tmp_path / "runs.jsonl").read_bytes()
    shutil.copytree(tmp_path, tmp_path / "checkpoints" / "Dense_1_0")  # what a kill has left behind a finished run
    assert compare() == 0 and (tmp_path / "runs.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("checkpoints/*"))
    assert compare("--lr", "0.3") == 2 and "another recipe" in capsys.readouterr().err
    assert train(tmp_path) == 2 and "holds a comparison" in capsys.readouterr().err
    assert train(tmp_path, "--overwrite", "true") == 2 and "holds a comparison" in capsys.readouterr().err
    assert (tmp_path / "runs.jsonl").read_bytes() == before
    assert compare("--lr", "0.3", "--overwrite", "true") == 0
    removed = "runs.jsonl, results.json, results.csv, summary.md, accuracy.png"
    assert f"{tmp_path}: --overwrite removes {removed}\n" in capsys.readouterr().err
    assert json.loads((tmp_path / "results.json").read_text())[0]["recipe"]["lr"] == 0.3


def test_export_replaces_another_network_only_when_told(tmp_path, capsys):
    export = ["export", "--model", "test_folder:Tiny"]
    one, other, out = tmp_path / "one", tmp_path / "other", tmp_path / "out"
    assert train(one) == 0 and train(other, "--seed", "1") == 0
    assert main([*export, str(one), "--output", str(out)]) == 0
    assert main([*export, str(one), "--output", str(out), "--program", "true"]) == 0  # the same network
    before = contents(out)
    capsys.readouterr()
    assert main([*export, str(other), "--output", str(out)]) == 2
    error = capsys.readouterr().err
    assert "holds another network; found model.safetensors, model.pt2. " in error and "--overwrite" in error
    assert contents(out) == before
    assert main([*export, str(other), "--output", str(out), "--overwrite", "true"]) == 0
    assert "--overwrite removes model.safetensors, model.pt2" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]


def test_without_a_terminal_there_are_lines(tmp_path, monkeypatch, capsys):
    """An epoch each in `train`; in `compare` one soon and then one every few seconds, of each run."""
    from morphogen.commands import terminal

    assert train(tmp_path / "a", "--epochs", "5") == 0
    told = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert told == [f"epoch {number} of 5" for number in range(1, 6)]
    method = "--methods [NetworkExpansion(stages=2)]".split()
    compare = ["compare", *TINY, "--epochs", "2", *method, "--output"]
    assert main([*compare, str(tmp_path / "b")]) == 0
    assert "Dense, seed 0: epoch 2 of 2 is over" not in capsys.readouterr().out
    monkeypatch.setattr(terminal, "QUIET", 0.0)
    assert main([*compare, str(tmp_path / "c")]) == 0
    assert capsys.readouterr().out.count(" of 2 is over, accuracy ") >= 4


def test_sigterm_ends_any_command_in_one_line(tmp_path, monkeypatch, capsys):
    from morphogen.commands import train as command

    monkeypatch.setattr(command, "load_data", lambda _: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    assert train(tmp_path / "out") == 143
    error = capsys.readouterr().err
    assert (
        error == "morphogen: stopped by SIGTERM, nothing was saved yet; continue with the same command and --resume\n"
    )
    assert not (tmp_path / "out").exists()

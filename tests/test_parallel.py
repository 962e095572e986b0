"""Runs beside each other: a process that is killed or held up is noticed. Runs in turn: what ends frees its memory."""

import os
import signal
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from morphogen.train import turns
from morphogen.train.checkpoint import Stopped
from morphogen.train.finished import Finished
from morphogen.train.models import build_model
from morphogen.train.processes import side_by_side
from morphogen.train.sources import load_data
from morphogen.train.turns import PlannedRun, in_turn
from test_lengths import config


def model(num_classes, note, deaths=0):
    """A model that takes its process along so many times, and leaves a process behind that holds what it held."""
    with open(note, "a") as file:
        file.write(f"{os.getpid()}\n")
    if len(Path(note).read_text().splitlines()) <= deaths:
        if not os.fork():
            time.sleep(60)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    return build_model("resnet8(width=4)", num_classes, 0.0)


def of(folder, deaths=0):
    settings = config(folder, model=f"test_parallel:model(note='{folder / 'note'}', deaths={deaths})", parallel=2)
    return settings, Finished(settings, load_data(settings)), PlannedRun("Dense", "Dense", 1, 8, 0.5)


def test_a_killed_process_is_noticed_and_its_run_begun_again(tmp_path):
    settings, finished, task = of(tmp_path, deaths=1)
    begin = time.monotonic()
    with pytest.warns(UserWarning, match=r"Dense, seed 1, .* its process was killed \(SIGKILL\); it is started again"):
        assert side_by_side([task], settings, finished, lambda *_: None) == []
    assert task.key in finished.records and time.monotonic() - begin < 55  # its child has the pipe for a minute


def test_one_that_is_killed_again_is_reported(tmp_path):
    settings, finished, task = of(tmp_path, deaths=2)
    with pytest.warns(UserWarning, match="started again"):
        failures = side_by_side([task], settings, finished, lambda *_: None)
    assert failures == [f"{task}, its process ended (SIGKILL)"] and not finished.records


def test_one_that_is_held_up_saves_when_asked_to_stop(tmp_path):
    settings, finished, task = of(tmp_path)
    asked = []

    def hold_up(*_):
        if not asked:
            asked.append(int((tmp_path / "note").read_text().splitlines()[-1]))
            os.kill(asked[0], signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=r"SIGTERM, 0 runs are finished, those at work are saved"):
        side_by_side([replace(task, steps=4 * 200)], settings, finished, hold_up)
    assert len(list(tmp_path.glob("checkpoints/*/*.safetensors"))) == 1


@pytest.mark.nightly
def test_memory_of_a_finished_run_is_free_before_the_others_end(tmp_path, monkeypatch):
    alive = weakref.WeakSet()

    class Watched(turns.Run):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive.add(self)

    monkeypatch.setattr(turns, "Run", Watched)
    settings = config(tmp_path, model="resnet8(width=4)")
    tasks = [PlannedRun("Dense", "Dense", 0, 4 * epochs, epochs / 4) for epochs in (1, 2, 4)]
    seen = []
    in_turn(
        tasks,
        settings,
        load_data(settings),
        Finished(settings, load_data(settings)),
        lambda *_: seen.append(len(alive)),
    )
    assert seen == [1, 2, 3, 3, 3, 3, 2, 2, 1, 1]  # told when each begins, and after every epoch

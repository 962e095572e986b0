"""Runs that are killed at random moments, go on from their checkpoints, and must end as if nothing had been.

    python benchmarks/kills.py [--studies growth pruning search] [--signals KILL TERM]

For each study and signal 30 moments, at most five in each run of `morphogen train` on scikit-learn's digits. After the
last of them the run goes on to its end, and its weights are compared bit for bit with those of a run that was left
alone. A signal that comes when the run has ended, with exit code 0, is no moment; another run makes up for it.

A moment follows from its number, the seed. The run that was left alone has noted when it reached each of its steps; the
moment lies at a random place between two of these notes, the first of them the start of the process, the last its end.
Half of the moments lie anywhere, half around a change of size, of which the start is the first: in the step before it,
in the change itself (with what was searched, and the first checkpoint of the new size), or in the step after it.

SIGKILL: a checkpoint is written after every step, so many moments fall into the writing of one. SIGTERM: nothing is
written but what the signal asks for, and that must be of the step at which it came: no step that was over when the
signal was sent may be lost, and at most one more is taken.

The times of a search's candidates are the machine's, and differ from run to run. Here they are made the same for all,
in runs that are killed and in the one that is left alone; nothing else of the trainer is changed.

Appends a line for each moment to benchmarks/results/kills/runs.jsonl; runs that are there are not made again. A run
of five moments takes about a minute on one core, most of it the start of six processes.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from morphogen.cli import main as morphogen
from morphogen.machine import timing
from morphogen.report.ledger import environment
from morphogen.report.render import as_markdown
from morphogen.train.checkpoint import Checkpoints

RESULTS = Path(__file__).parent / "results" / "kills" / "runs.jsonl"
MOMENTS, KILLS = 30, 5
STUDIES = {
    "growth": {"model": "resnet8(width=8)", "method": "NetworkExpansion(stages=3)", "mixup": "0.2"},
    "pruning": {"model": "resnet8(width=8)", "method": "PruneTrain(ratio=0.9, interval=1, proximal=True)", "lr": "0.3"},
    "search": {
        "model": "timm:vit_tiny_patch16_224(img_size=16, patch_size=4, embed_dim=32, depth=4, num_heads=2)",
        "method": "AutoProg(stages=3, search_epochs=1)",
        "optimizer": "adamw",
        "lr": "0.002",
        "drop_path": "0.1",
    },
}
SHARED = {"epochs": "6", "batch_size": "64", "images": "640", "test_images": "64", "ema": "0.9", "resume": "true"}
EVERY = {"KILL": "0", "TERM": "3600"}
"""Seconds between two checkpoints."""

Place = tuple[int, int]
"""An epoch, and the number of its steps that are taken."""


def child(notes: str, arguments: list[str]) -> int:
    """Train, and note when each step is over; the candidates of a search always take the same times."""
    timing.StepClock.medians = lambda clock: {number: 1.0 + number for number in clock.read()}
    after_step = Checkpoints.after_step

    def noted(self: Checkpoints, epoch: int, step: int, *rest) -> None:
        with open(notes, "a") as file:
            file.write(f"{epoch} {step} {time.monotonic()}\n")
        after_step(self, epoch, step, *rest)

    Checkpoints.after_step = noted
    return morphogen(arguments)


@dataclass
class Attempt:
    """A process that trains, from nothing or from the last checkpoint."""

    process: subprocess.Popen
    notes: Path
    folder: Path

    @staticmethod
    def start(study: str, every: str, folder: Path) -> Attempt:
        """Go on with what is in a folder, if anything is."""
        folder.mkdir(exist_ok=True)
        notes = folder / "notes"
        notes.write_text("")
        settings = STUDIES[study] | SHARED | {"save_every": every, "output": str(folder)}
        command = [sys.executable, __file__, "child", str(notes), "train"]
        command += [word for key, value in settings.items() for word in (f"--{key}", value)]
        with open(folder / "output", "w") as output:
            return Attempt(subprocess.Popen(command, stdout=output, stderr=output), notes, folder)

    def steps(self) -> list[tuple[Place, float]]:
        """The steps that were over, and when."""
        lines = [line.split() for line in self.notes.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [((int(epoch), int(step)), float(when)) for epoch, step, when in lines]

    def saved(self) -> Place | None:
        """Where the last checkpoint is."""
        names = sorted(path.stem.split("-") for path in self.folder.glob("checkpoints/epoch-*.safetensors"))
        return (int(names[-1][1]), int(names[-1][3])) if names else None

    def end(self) -> int:
        """Wait for the end of the process; returns its exit code."""
        return self.process.wait()

    def weights(self) -> dict[str, torch.Tensor]:
        """What was trained."""
        if self.end():
            raise SystemExit(f"a run ended with {self.end()}: {(self.folder / 'output').read_text()}")
        return torch.load(self.folder / "model.pt", weights_only=True)["state_dict"]


@dataclass
class Whole:
    """The run that is left alone.

    Attributes:
        weights: it ended with.
        places: it came by.
        gaps: seconds before each of these places, and after the last.
        changes: numbers of the gaps in which the network changed its size, the start among them.
    """

    weights: dict[str, torch.Tensor]
    places: list[Place]
    gaps: list[float]
    changes: list[int]

    @staticmethod
    def of(study: str, folder: Path) -> Whole:
        """Train it."""
        begin = time.monotonic()
        attempt = Attempt.start(study, "0", folder)
        weights = attempt.weights()
        places, times = zip(*attempt.steps(), strict=True)
        times = [begin, *times, time.monotonic()]
        (record,) = json.loads((folder / "results.json").read_text())
        epochs = {stage["epoch"] for stage in record["history"]}
        changes = [number for number, (epoch, step) in enumerate(places) if step == 0 and epoch in epochs]
        gaps = [after - before for before, after in pairwise(times)]
        return Whole(weights, list(places), gaps, changes)

    def moment(self, seed: int) -> tuple[int, float]:
        """The gap of a moment, and the share of it that is over."""
        dice = random.Random(seed)
        around = [gap + near for gap in self.changes for near in (-1, 0, 1) if gap + near >= 0]
        return dice.choice(around if seed % 2 else range(len(self.gaps))), dice.random()

    def number(self, place: Place | None) -> int:
        """Of a place; -1 before the first."""
        return -1 if place is None else self.places.index(place)


def interrupted(study: str, name: str, run: int, kills: int, whole: Whole, folder: Path) -> list[dict]:
    """One run, with its moments in the order in which they come."""
    seeds = range(run * KILLS, run * KILLS + kills)
    moments = []
    for gap, share, seed in sorted((*whole.moment(seed), seed) for seed in seeds):
        attempt = Attempt.start(study, EVERY[name], folder)
        before = attempt.saved()
        while gap and attempt.process.poll() is None and not reached(attempt, whole, gap - 1):
            time.sleep(0.001)
        time.sleep(share * whole.gaps[gap])
        sent = time.monotonic()
        attempt.process.send_signal(signal.Signals[f"SIG{name}"])
        code = attempt.end()
        over = [place for place, when in attempt.steps() if when <= sent]
        here = over[-1] if over else before
        lost = whole.number(here) - whole.number(attempt.saved()) if code else 0
        moments.append(
            {
                "seed": seed,
                "exit": code,
                "at": here,
                "resumed_from": attempt.saved(),
                "lost": lost,
                "change": whole.number(here) + 1 in whole.changes,
                "writing": any(folder.glob("checkpoints/.*.part")),
            }
        )
        if code == 0:
            break  # it was over before the signal came
    weights = Attempt.start(study, EVERY[name], folder).weights() if moments[-1]["exit"] else attempt.weights()
    equal = weights.keys() == whole.weights.keys() and all(
        torch.equal(weights[key], whole.weights[key]) for key in weights
    )
    where = environment(torch.device("cpu"))
    return [{"study": study, "signal": name, "run": run, **m, "equal": equal, "environment": where} for m in moments]


def reached(attempt: Attempt, whole: Whole, number: int) -> bool:
    """Whether this process has come so far."""
    steps = attempt.steps()
    return bool(steps) and whole.number(steps[-1][0]) >= number


def table(records: list[dict]) -> Iterator[dict[str, str]]:
    """A row for each study and signal."""
    for study, name in dict.fromkeys((r["study"], r["signal"]) for r in records):
        mine = [r for r in records if (r["study"], r["signal"]) == (study, name) and r["exit"]]
        yield {
            "run": study,
            "signal": f"SIG{name}",
            "moments": f"{len(mine)}",
            "before the first checkpoint": f"{sum(r['resumed_from'] is None for r in mine)}",
            "in a change of size": f"{sum(r['change'] for r in mine)}",
            "in the writing of a checkpoint": f"{sum(r['writing'] for r in mine)}",
            "most steps lost": f"{max(0, *(r['lost'] for r in mine))}",
            "equal": f"{sum(r['equal'] for r in mine)}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--signals", nargs="+", choices=EVERY, default=list(EVERY))
    options = parser.parse_args()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.touch()
    for study in options.studies:
        with tempfile.TemporaryDirectory() as folder:
            whole = None
            for name in options.signals:
                while missing := MOMENTS - sum(bool(r["exit"]) for r in recorded(study, name)):
                    run = 1 + max((r["run"] for r in recorded(study, name)), default=-1)
                    whole = whole or Whole.of(study, Path(folder) / "whole")
                    made = interrupted(study, name, run, min(missing, KILLS), whole, Path(folder) / f"{name}{run}")
                    with open(RESULTS, "a") as file:
                        file.writelines(json.dumps(record) + "\n" for record in made)
                    print(study, name, run, made[0]["equal"], [m["resumed_from"] for m in made], flush=True)
    print(as_markdown(list(table(recorded()))))


def recorded(study: str | None = None, name: str | None = None) -> list[dict]:
    """The moments so far, of all runs or of one study and signal."""
    records = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    records = [r for r in records if "study" in r]  # the others are of kills_of_commands.py
    return [r for r in records if study in (None, r["study"]) and name in (None, r["signal"])]


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        sys.exit(child(sys.argv[2], sys.argv[3:]))
    main()

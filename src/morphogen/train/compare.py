"""Methods beside the dense network: the same loop, seeds and clock, epoch by epoch in turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from ..errors import ConfigError, MorphogenError, first_line
from ..machine.files import writable, write_text
from ..methods import Dense, Method, build_method
from ..plan.predict import realised
from ..report.ledger import environment
from .config import CompareConfig, Recipe
from .data import Data
from .loop import Run
from .sources import load_data

Record = dict[str, Any]
BESIDE_THE_RECIPE = ("methods", "seeds", "first_seed", "output", "workers", "sparsity_map", "warn_drop")
"""Settings that leave the outcome of a run as it is."""

Progress = Callable[[str, int, int, float], None]
"""Told after every epoch: the run's label, epochs done, epochs in all, accuracy."""


def compare(config: CompareConfig, progress: Progress = lambda *_: None) -> tuple[list[Record], list[str]]:
    """Train dense and every method with every seed, and for each method a dense run of the method's own time.

    Methods of the same FLOPs, or of times within 5 %, share that run. The runs of one seed take turns after every
    epoch, so that a noisy machine hits all alike. Finished runs are appended to `runs.jsonl` in the output folder at
    once and not run again when the comparison is started anew with the same recipe.

    Returns:
        One record a run, with `speedup`, `flop_speedup` and `realised` against the dense run of its seed; and
        what stopped those that did not finish, which does not stop the others.

    Raises:
        MorphogenError: settings, model, data and methods that do not fit.
    """
    methods: dict[str, Method] = {"Dense": Dense()}
    for text in config.methods:
        methods[text] = build_method(text)
    data = load_data(config)
    log = _Log(config, data)
    failures: list[str] = []
    for seed in config.all_seeds:
        todo = [label for label in methods if (label, seed) not in log.records]
        runs = [Run(config, data, methods[label], label, seed) for label in todo]
        writable(config.output)
        failures += _in_turn(runs, log, progress)
        for label in _budgets(config.methods, log, seed):
            failures += _run_in_time_of(label, seed, config, data, log, progress)
    return log.compared(config), failures


def _budgets(labels: list[str], log: _Log, seed: int) -> list[str]:
    """The methods whose time a dense run must fit: one of those of the same FLOPs, or of times within 5 %."""
    chosen: dict[str, tuple[float, int]] = {}
    for label in labels if ("Dense", seed) in log.records else []:
        if (label, seed) in log.records:
            seconds, flops = (log.records[label, seed][key] for key in ("training_seconds", "flops"))
            if not any(flops == theirs or abs(seconds / other - 1) < 0.05 for other, theirs in chosen.values()):
                chosen[label] = seconds, flops
    return list(chosen)


def _run_in_time_of(label: str, seed: int, recipe: Recipe, data: Data, log: _Log, progress: Progress) -> list[str]:
    """A dense run shortened so that it takes as long as a method did; none where the method took longer than dense."""
    short = in_time_of(label)
    dense, method = log.records["Dense", seed], log.records[label, seed]
    share = method["training_seconds"] / dense["training_seconds"]
    if (short, seed) in log.records or share >= 1:
        return []
    steps = max(1, round(share * recipe.epochs * data.steps))
    return _in_turn([Run(recipe, data, Dense(), short, seed, steps)], log, progress)


def in_time_of(label: str) -> str:
    """The label of the dense run with the time budget of a method."""
    return f"Dense in the time of {label}"


def _in_turn(runs: list[Run], log: _Log, progress: Progress) -> list[str]:
    """One epoch of each run after the other until all are over; returns what went wrong with any."""
    going: list[tuple[Run, Iterator[Any]]] = [(run, run.epochs()) for run in runs]
    failures: list[str] = []
    while going:
        for run, epochs in list(going):
            try:
                epoch = next(epochs, None)
            except MorphogenError as error:
                going.remove((run, epochs))
                failures.append(f"{run.ledger.method}, seed {run.seed}, {error}")
                continue
            if epoch is None:
                going.remove((run, epochs))
                log.append(run)
            else:
                progress(f"{run.ledger.method}, seed {run.seed}", epoch.epoch + 1, run.total_epochs, epoch.accuracy)
    return failures


class _Log:
    """The finished runs of one comparison, on disk."""

    def __init__(self, config: CompareConfig, data: Data):
        self.path = config.output / "runs.jsonl"
        # Results are to be shared, the paths of a machine are not.
        recipe = _recipe(config) | {"data": data.name, "token_labels": data.teacher}
        defaults = _recipe(CompareConfig())
        self.head = {"recipe": recipe, "environment": environment(config.torch_device())}
        self.records: dict[tuple[str, int], Record] = {}
        try:
            lines = self.path.read_text().splitlines() if self.path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read it ({first_line(error)})", where=str(self.path)) from error
        whole = []
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line a killed session was writing
            # Keys that came after the record was written have their defaults in it.
            if not isinstance(record, dict) or defaults | dict(record.get("recipe", {})) != recipe:
                raise ConfigError(
                    "the folder holds runs of another recipe",
                    where=str(config.output),
                    todo="Choose another folder with --output, or remove it",
                )
            self.records[record["method"], record["seed"]] = record
            whole.append(line + "\n")
        if len(whole) < len(lines):
            write_text(self.path, "".join(whole))

    def append(self, run: Run) -> None:
        """Keep a finished run."""
        record = {**run.ledger.record(), **self.head}
        self.records[record["method"], record["seed"]] = record
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def compared(self, config: CompareConfig) -> list[Record]:
        """All records of this comparison in the order of the table, speedups added."""
        labels = ["Dense"]
        for label in config.methods:
            labels += [label, in_time_of(label)]
        return [
            {**self.records[label, seed], **speedups(self.records[label, seed], self.records["Dense", seed])}
            for label in labels
            for seed in config.all_seeds
            if (label, seed) in self.records and ("Dense", seed) in self.records
        ]


def _recipe(config: CompareConfig) -> Record:
    """What decides how a run goes."""
    return {key: value for key, value in asdict(config).items() if key not in BESIDE_THE_RECIPE}


def speedups(record: Record, dense: Record) -> dict[str, float | None]:
    """Speedup in time and in FLOPs, and the share of the saved FLOPs that became saved time.

    See `realised`, which is None where no FLOPs were saved.
    """
    time = dense["training_seconds"] / record["training_seconds"]
    flops = dense["flops"] / record["flops"]
    return {"speedup": time, "flop_speedup": flops, "realised": realised(time, flops)}

"""Complete runs of several lengths, dense and by every method: what speed at equal accuracy is read off."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, MorphogenError, TrainingError, first_line
from ..machine.files import write_text
from ..machine.reading import MALFORMED, parse_json, read_text, within
from ..methods import Method, build_method
from ..report.fronts import FULL_LENGTH, Point
from ..report.records import Record
from .config import CompareConfig
from .finished import Finished
from .processes import side_by_side
from .sources import load_data
from .step_times import StepTimes
from .turns import PlannedRun, Progress, Resumable, in_turn, left_out, unfinished


@dataclass(frozen=True)
class Lengths:
    """What the runs of several lengths came to.

    Attributes:
        points: one a finished run.
        head: recipe and environment.
        apart: whether seconds are made of step times.
        end_to_end: for each method, the speedup of the one run of full length that took turns with the dense one, and
            what the step times say of the same two; empty where all runs took turns.
        failures: what stopped those that did not finish.
    """

    points: list[Point]
    head: Record
    apart: bool
    end_to_end: dict[str, tuple[float, float]]
    failures: list[str]


def compare_lengths(config: CompareConfig, progress: Progress = lambda *_: None) -> Lengths:
    """Train dense and every method with every seed, once for each budget.

    Each is a run of its own, of `round(budget * epochs)` epochs (a method's stretched by `config.stretch`), with a
    schedule of growth, learning rate and warm-up of its own. One at a time, the runs of a seed take turns after every
    epoch, and their times count. With `config.parallel` they are trained beside each other, but for those of full
    length with the first seed, which take turns as a check; the times that count are then made of step times, taken
    when nothing else runs.

    Finished runs are read from `runs.jsonl` in the output folder, others go on from their checkpoints.

    A method that does not fit, be it at one of the lengths, is left out. So is, with `parallel` or where the folder has
    runs that were trained beside each other, one that prunes, searches, freezes or changes the batch.

    Raises:
        MorphogenError: settings, model and data that do not fit, or no method that does.
        Stopped: asked to.
    """
    labels = ["Dense", *config.methods]
    methods = {label: build_method(label) for label in labels}
    data = load_data(config)
    finished = Finished(config, data)
    plans = [
        PlannedRun(label, label, seed, config.epochs_of(label, budget) * data.steps, budget)
        for seed in config.all_seeds
        for budget in sorted(config.budgets)
        for label in labels
    ]
    schedules = {
        (planned.label, planned.budget): (methods[planned.label], planned.steps // data.steps) for planned in plans
    }
    apart = config.parallel > 1 or any(_timed_apart(config, finished, planned) for planned in plans)
    times = StepTimes(config, data) if apart else None
    unfit = {} if times is None else _untimed(schedules, times)  # before anything is trained
    failures = list(unfit.values())
    plans = [planned for planned in plans if planned.label not in unfit]
    schedules = {key: schedule for key, schedule in schedules.items() if key[0] not in unfit}
    todo = unfinished(plans, config, finished)
    if config.parallel > 1:
        pair = [planned for planned in todo if planned.budget == FULL_LENGTH and planned.seed == config.first_seed]
        failures += side_by_side([planned for planned in todo if planned not in pair], config, finished, progress)
        failures += in_turn(pair, config, data, finished, progress)
    else:
        for seed in config.all_seeds:
            failures += in_turn([planned for planned in todo if planned.seed == seed], config, data, finished, progress)
    seconds = {} if times is None else _apart(config.output / "step_times.json", schedules, times)
    done = [(planned, finished.records[planned.key]) for planned in plans if planned.key in finished.records]
    points = [
        Point(
            planned.label,
            planned.budget if planned.label == "Dense" else planned.budget * config.stretch,
            planned.seed,
            record["accuracy"],
            seconds[planned.label][f"{planned.budget:g}"] if apart else record["training_seconds"],
            record["flops"],
        )
        for planned, record in done
    ]
    return Lengths(points, finished.head, apart, _end_to_end(config, finished, seconds), failures)


def _untimed(schedules: dict[tuple[str, float], tuple[Method, int]], times: StepTimes) -> dict[str, str]:
    """The methods whose steps cannot be timed apart, or that do not fit, and why.

    Raises:
        MorphogenError: it is the dense network, or all methods.
    """
    unfit: dict[str, str] = {}
    for (label, budget), schedule in schedules.items():
        try:
            if label not in unfit:
                times.spans(*schedule)
        except MorphogenError as error:
            if label == "Dense":
                raise
            unfit[label] = left_out(f"{label}, {budget:g} of the length", error)
    if unfit and not {label for label, _ in schedules} - {"Dense", *unfit}:
        raise TrainingError("; ".join(unfit.values()))  # nothing to compare with
    return unfit


def _timed_apart(config: CompareConfig, finished: Finished, planned: PlannedRun) -> bool:
    """Whether others ran beside it: of a finished run, or of one that is to go on from its checkpoint."""
    record = finished.records.get(planned.key)
    return Resumable(planned, config).timed_apart if record is None else record.get("timed_apart", False)


def _apart(
    path: Path, schedules: dict[tuple[str, float], tuple[Method, int]], times: StepTimes
) -> dict[str, dict[str, float]]:
    """Training seconds by label and budget, from step times; those in the file where it has all of them."""
    known = _known(path) if path.exists() else {}
    if all(f"{budget:g}" in known.get(label, {}) for label, budget in schedules):
        return known
    for schedule in schedules.values():
        times.measure(*schedule)
    seconds: dict[str, dict[str, float]] = {}
    for (label, budget), schedule in schedules.items():
        seconds.setdefault(label, {})[f"{budget:g}"] = times.seconds(*schedule)
    write_text(path, json.dumps(seconds, indent=1) + "\n")
    return seconds


def _known(path: Path) -> dict[str, dict[str, float]]:
    try:
        return {
            label: {budget: within(seconds, 1e-9, 1e12) for budget, seconds in each.items()}
            for label, each in parse_json(read_text(path)).items()
        }
    except (OSError, *MALFORMED) as error:
        raise ConfigError(
            f"not the step times of a comparison ({first_line(error)})",
            where=str(path),
            todo="Remove it; they are taken again",
        ) from error


def _end_to_end(
    config: CompareConfig, finished: Finished, seconds: dict[str, dict[str, float]]
) -> dict[str, tuple[float, float]]:
    """Speedup of the runs that took turns, and by step times; see `Lengths`."""
    if not seconds:
        return {}
    full = {label: finished.records.get((label, FULL_LENGTH, config.first_seed)) for label in seconds}
    alone = {k: record["training_seconds"] for k, record in full.items() if record and not record.get("timed_apart")}
    return {
        label: (alone["Dense"] / alone[label], seconds["Dense"]["1"] / seconds[label]["1"])
        for label in config.methods
        if {"Dense", label} <= alone.keys()
    }

"""AutoProg (Li et al., CVPR 2022): Figures 1 and 4, and what its searches saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..courses import Course, course
from ..page.chart import SECONDS, unit_of
from ..page.series import DENSE
from ..records import Record, by_method, measured
from ..searches import draw_searches
from .figure import PaperFigure, colour, new_figure, save, some, subject

DASHES = ("-", "--", "-.", ":")


def draw_sizes(records: Sequence[Record], path: Path) -> None:
    """Accuracy against run time while models of several sizes train, the smallest first in the legend."""
    dense = some([run for run in records if run["method"] == DENSE], "Dense runs of several models, a `train` each")
    models: dict[str, list[Record]] = {}
    for run in dense:
        models.setdefault(run["model"], []).append(run)
    by_size = sorted(models, key=lambda model: models[model][0]["stages"][-1]["parameters"])
    courses = {model: course(models[model], "seconds") for model in by_size}
    _draw(courses, ", ".join(dict.fromkeys(run["data"] for run in dense)), measured(dense), path)


def _draw(courses: dict[str, Course], title: str, metric: str, path: Path) -> None:
    unit, unit_name = unit_of(max(each.costs[-1] for each in courses.values()), SECONDS)
    figure, [axes] = new_figure()
    for number, (name, each) in enumerate(courses.items()):
        xs = [cost / unit for cost in each.costs]
        axes.plot(xs, each.mean, color=colour(number), linestyle=DASHES[number % len(DASHES)], label=name)
        low, high = ([m + sign * s for m, s in zip(each.mean, each.spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour(number), alpha=0.15, linewidth=0)
    axes.set_xlabel(f"training time ({unit_name})")
    axes.set_ylabel(f"test {metric} (%)")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8, loc="lower right")
    save(figure, path)


def draw_learning_curves(records: Sequence[Record], path: Path) -> None:
    """Accuracy by epoch under each learning scheme, not smoothed; means over the seeds."""
    figure, [axes] = new_figure()
    for number, (method, runs) in enumerate(by_method(some(records, "finished runs")).items()):
        each = course(runs, "seconds")
        epochs = [epoch["epoch"] + 1 for epoch in runs[0]["epochs"]][: len(each.mean)]
        look = "black" if method == DENSE else colour(number)
        axes.plot(epochs, each.mean, color=look, linestyle=DASHES[number % len(DASHES)], label=method)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"test {measured(records)} (%)")
    axes.set_title(subject(records), fontsize=9)
    axes.legend(fontsize=7, loc="lower right")
    save(figure, path)


def draw_found(records: Sequence[Record], path: Path) -> None:
    """Loss against the time of a step of every candidate of a run's searches."""
    run = some([run for run in records if run.get("searches")], "a run of AutoProg, which searches")[0]
    draw_searches(run["searches"], path)


FIGURES = (
    PaperFigure(
        "autoprog/1", "accuracy by run time for several sizes", "a `train --method Dense` for each model", draw_sizes
    ),
    PaperFigure(
        "autoprog/4", "accuracy by epoch under each scheme", "one `compare`, or several `train`", draw_learning_curves
    ),
    PaperFigure("autoprog/searches", "candidates of the searches", "one run of AutoProg", draw_found),
)

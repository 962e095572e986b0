"""Speed at equal accuracy as tables, files and a picture."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..machine.files import write_text
from .fronts import Cost, Point, Speedup, front
from .render import as_markdown

UNITS: dict[Cost, tuple[float, str]] = {"seconds": (1, "training time (s)"), "flops": (1e12, "training TFLOPs")}
GREY = "#808080"
"""Seen on white and on black alike."""


def headline_rows(
    speedups: Sequence[Speedup], checks: Mapping[str, tuple[float, float]], metric: str = "accuracy"
) -> list[dict[str, str]]:
    """One row a method and accuracy: the speedup in time and in FLOPs, each with its interval.

    Args:
        speedups: as `speedups_at_equal_accuracy` gives them.
        checks: for each method, a full-length pair's speedup from end to end and by step times; empty for none.
        metric: what the accuracy is, see `Ledger.metric`.
    """
    rows: dict[tuple[str, float], dict[str, str]] = {}
    for each in speedups:
        place = f"{each.accuracy:.2f} ({f'dense - {each.below:g}' if each.below else 'dense'})"
        row = rows.setdefault((each.method, each.below), {"method": each.method, f"at {metric} %": place})
        row["speedup in time (95 %)" if each.cost == "seconds" else "in FLOPs (95 %)"] = str(each)
    if checks:
        for row in rows.values():
            end_to_end, by_steps = (f"{value:.2f}x" for value in checks.get(row["method"], (math.nan, math.nan)))
            row["full length, by step times"], row["end to end"] = by_steps, end_to_end
    return list(rows.values())


def front_rows(points: Sequence[Point], metric: str = "accuracy") -> list[dict[str, str]]:
    """One row a method and length: the mean accuracy over seeds with its standard deviation, mean time and FLOPs.

    `metric` is what the accuracy is.
    """
    rows = []
    for method in _methods(points):
        by_budget = {knot.budget: knot for knot in front(points, method, "flops")}
        for knot in sorted(front(points, method, "seconds"), key=lambda knot: knot.budget):
            spread = "" if knot.spread is None else f" ± {knot.spread:.2f}"
            rows.append(
                {
                    "method": method,
                    "length": f"{knot.budget:g}",
                    "seeds": f"{knot.seeds}",
                    f"{metric} %": f"{knot.accuracy:.2f}{spread}",
                    "seconds": f"{knot.cost:.1f}",
                    "TFLOPs": f"{by_budget[knot.budget].cost / 1e12:.3g}",
                }
            )
    return rows


def write_headline(points: Sequence[Point], speedups: Sequence[Speedup], head: Mapping[str, Any], folder: Path) -> None:
    """`fronts.json`, `fronts.csv` (a row a run), `fronts.md` and `fronts.png`; `head` goes into the JSON.

    `head["end_to_end"]` and `head["metric"]` are as `headline_rows` takes them.
    """
    fronts = {
        method: {cost: [asdict(knot) for knot in front(points, method, cost)] for cost in UNITS}
        for method in _methods(points)
    }
    content = {**head, "speedups": [each.to_dict() for each in speedups], "fronts": fronts}
    write_text(folder / "fronts.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    with open(folder / "fronts.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(points[0])))
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)
    metric = head["metric"]
    tables = [
        rows for rows in (headline_rows(speedups, head["end_to_end"], metric), front_rows(points, metric)) if rows
    ]
    write_text(folder / "fronts.md", "\n\n".join(map(as_markdown, tables)) + "\n")
    draw_fronts(points, folder / "fronts.png", metric)


def draw_fronts(points: Sequence[Point], path: Path, metric: str = "accuracy") -> None:
    """Accuracy against time and against FLOPs: a dot a run, its fitted front, the means with their spread.

    `metric` is what the accuracy is. On no background, in colours that are read on a light and on a dark page.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    methods = _methods(points)
    figure = Figure(figsize=(11, 4.5 + 0.2 * len(methods)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (cost, (unit, what)) in zip(panels, UNITS.items(), strict=True):
        for i, method in enumerate(methods):
            colour, knots = f"C{i}", front(points, method, cost)
            costs = [knot.cost / unit for knot in knots]
            runs = [point for point in points if point.method == method]
            axes.plot(
                [getattr(run, cost) / unit for run in runs],
                [run.accuracy for run in runs],
                marker=".",
                linestyle="none",
                color=colour,
                alpha=0.4,
            )
            axes.plot(costs, [knot.fitted for knot in knots], color=colour, label=method)
            axes.errorbar(
                costs,
                [knot.accuracy for knot in knots],
                yerr=[knot.spread or 0 for knot in knots],
                color=colour,
                marker="o",
                markersize=5,
                capsize=3,
                linestyle="none",
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(what)
        axes.grid(color=GREY, alpha=0.3)
        axes.patch.set_alpha(0)
        axes.tick_params(colors=GREY)
        axes.xaxis.label.set_color(GREY)
        for spine in axes.spines.values():
            spine.set_color(GREY)
    panels[0].set_ylabel(f"test {metric} (%), mean and standard deviation", color=GREY)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, frameon=False, labelcolor=GREY
    )
    figure.savefig(path, dpi=130, transparent=True)


def _methods(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.method for point in points))

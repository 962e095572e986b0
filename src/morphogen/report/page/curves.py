"""Accuracy against what it costs: fronts of complete runs, and the way there of runs of one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from ..courses import course
from ..fronts import Knot
from ..outputs import Fronts
from ..records import Record, by_method, measured
from .chart import FLOPS, SECONDS, Chart, unit_of
from .elements import el
from .series import Series

COSTS = {"seconds": ("training time", SECONDS), "flops": ("training FLOPs", FLOPS)}


def draw_fronts(fronts: Fronts, series: Mapping[str, Series], metric: str) -> Element:
    """A chart for time and one for FLOPs: the mean of each length, its spread, and the front that is read off."""
    return el("div", *(_front(fronts, series, cost, metric) for cost in COSTS), class_="grid")


def _front(fronts: Fronts, series: Mapping[str, Series], cost: str, metric: str) -> Element:
    what, units = COSTS[cost]
    knots: dict[str, list[Knot]] = {method: by_cost[cost] for method, by_cost in fronts.knots.items()}
    every = [knot for each in knots.values() for knot in each]
    unit, unit_name = unit_of(max(knot.cost for knot in every), units)
    ends = [knot.accuracy + sign * (knot.spread or 0) for knot in every for sign in (-1, 1)]
    chart = Chart(
        f"{metric[:1].upper()}{metric[1:]} by {what}",
        (f"{what} ({unit_name}), log scale", [knot.cost / unit for knot in every]),
        (f"test {metric} (%)", [*ends, *(knot.fitted for knot in every)]),
        log=True,
        labels=[series[method].name for method in knots],
    )
    for method, each in knots.items():
        one = series[method]
        low_high = [
            (knot.cost / unit, knot.accuracy - (knot.spread or 0), knot.accuracy + (knot.spread or 0)) for knot in each
        ]
        chart.band(low_high, one.look)
        chart.bars(low_high, one.look)
        chart.line([(knot.cost / unit, knot.fitted) for knot in each], one.look)
        for knot in each:
            spread = "" if knot.spread is None else f" ± {knot.spread:.2f}"
            told = f"{one.name}, {knot.budget:g} of the dense length: {knot.accuracy:.2f}{spread} %, {knot.seeds} seeds"
            chart.dot(knot.cost / unit, knot.accuracy, one, told)
        chart.label(each[-1].cost / unit, each[-1].fitted, one.name, one.look)
    return chart.element(
        "A marker is the mean over the seeds of complete runs of one length, the band their standard deviation, "
        "the line the front that never falls."
    )


def draw_courses(records: Sequence[Record], series: Mapping[str, Series]) -> Element:
    """A chart for time and one for FLOPs: mean and band over the seeds, a triangle at each change of size."""
    return el("div", *(_courses(records, series, cost) for cost in COSTS), class_="grid")


def _courses(records: Sequence[Record], series: Mapping[str, Series], cost: str) -> Element:
    (what, units), metric = COSTS[cost], measured(records)
    courses = {method: course(runs, cost) for method, runs in by_method(records).items()}
    unit, unit_name = unit_of(max(each for one in courses.values() for each in one.costs), units)
    pairs = [
        (m - sign * s)
        for one in courses.values()
        for m, s in zip(one.mean, one.spread, strict=True)
        for sign in (-1, 1)
    ]
    chart = Chart(
        f"{metric[:1].upper()}{metric[1:]} by {what}",
        (f"{what} ({unit_name})", [0.0, *(each / unit for one in courses.values() for each in one.costs)]),
        (f"test {metric} (%)", pairs),
        labels=[series[method].name for method in courses if not series[method].same_time],
    )
    for method, one in courses.items():
        look = series[method].look
        xs = [each / unit for each in one.costs]
        if one.seeds > 1:
            chart.band([(x, m - s, m + s) for x, m, s in zip(xs, one.mean, one.spread, strict=True)], look)
        chart.line(list(zip(xs, one.mean, strict=True)), look)
        chart.dot(xs[-1], one.mean[-1], series[method], f"{method}: {one.mean[-1]:.2f} %, {one.seeds} seeds")
        if not series[method].same_time:
            chart.label(xs[-1], one.mean[-1], series[method].name, look)
    most = max(one.seeds for one in courses.values())
    seeds = f"Lines are means over up to {most} seeds, bands their standard deviation. " if most > 1 else "One seed. "
    hollow = (
        "Hollow markers are dense runs of a method's own time. " if any(series[m].same_time for m in courses) else ""
    )
    time = "Evaluation is not in the time." if cost == "seconds" else ""
    return chart.element(f"{seeds}{hollow}{time}".strip())

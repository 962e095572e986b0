"""Where the time went: one bar a method, a piece a cause."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from ..ledger import BESIDE, TRAINING
from ..records import Record, by_method
from .chart import LETTER, SECONDS, WIDTH, figure, unit_of
from .elements import el, table
from .series import Series
from .style import SERIES

BAR, ROW = 20, 44
"""Units of a bar, and of a method's row."""

NAMED = 0.005
"""The least share of a bar that is a piece of its own; less goes to the rest."""


def causes_of(runs: Sequence[Record]) -> dict[str, float]:
    """Mean seconds of each cause over the runs of one method; evaluation comes last."""
    order = dict.fromkeys(
        (*TRAINING, *(cause for run in runs for cause in run["seconds"] if cause not in BESIDE), *BESIDE)
    )
    means = {cause: statistics.fmean(float(run["seconds"].get(cause, 0)) for run in runs) for cause in order}
    return {cause: max(0.0, mean) for cause, mean in means.items() if mean > 0}


def draw_times(records: Sequence[Record], series: Mapping[str, Series]) -> Element:
    """The bars, and the same figures as a table."""
    found = {method: causes_of(runs) for method, runs in by_method(records).items()}
    longest = max((sum(each.values()) for each in found.values()), default=0) or 1.0
    causes = list(dict.fromkeys(cause for each in found.values() for cause in each))
    unit, unit_name = unit_of(longest, SECONDS)
    content: list[Element] = [el("text", "Time by cause", x=0, y=12, class_="title")]
    for row, (method, seconds) in enumerate(found.items()):
        top = 26 + row * ROW
        total = f"{series[method].name}: {figure(sum(seconds.values()) / unit)} {unit_name}"
        content.append(el("text", total, x=0, y=top + 9, class_="tick"))
        x, rest = 0.0, 0.0
        for cause, spent in seconds.items():
            if spent / longest < NAMED:
                rest += spent
                continue
            wide = spent / longest * WIDTH
            content += _piece(
                x,
                top + 13,
                wide,
                cause,
                spent,
                f"s{causes.index(cause) % SERIES} {'beside' if cause in BESIDE else ''}",
            )
            x += wide
        if rest:
            content += _piece(x, top + 13, rest / longest * WIDTH, "other", rest, "dense")
    height = 26 + ROW * len(found)
    drawing = el(
        "svg", *content, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label="Time by cause, as in the table"
    )
    rows = [
        {"method": series[method].name, **{f"{cause} (s)": f"{seconds.get(cause, 0):.1f}" for cause in causes}}
        for method, seconds in found.items()
    ]
    note = "Means over the seeds. Evaluation and the report's own counting are no training time; they stand at the end."
    return el("div", el("figure", drawing, el("figcaption", note)), table(rows) if causes else None, class_="grid")


def _piece(x: float, top: float, wide: float, cause: str, seconds: float, look: str) -> list[Element]:
    """A piece of a bar, with its name where there is room; else it is told where it is pointed at, and in the table."""
    told = el("title", f"{cause}: {seconds:.1f} s")
    piece = el("rect", told, x=x, y=top, width=wide, height=BAR, class_=f"{look} bar")
    if wide < LETTER * len(cause) + 8:
        return [piece]
    return [piece, el("text", cause, x=x + 5, y=top + 14, class_=None if "beside" in look else "inside")]

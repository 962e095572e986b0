"""Heat maps: a row of cells for each name, over the epochs; one path for each level, so that a page stays small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from .chart import LETTER, WIDTH, Scale
from .elements import clean, el, number
from .style import LEVELS

BOTTOM = 34
NAME = 20
"""Characters of a row's name."""

Row = Sequence[tuple[float, float, int | None]]
"""(from, to, level) of each cell, in epochs; None is left empty."""


def heat_map(title: str, names: Sequence[str], rows: Sequence[Row], epochs: float, note: str) -> Element:
    """The map.

    Args:
        title: above it.
        names: one a row, or none at all.
        rows: from the top down, all of the same cells or not.
        epochs: the length of the axis.
        note: below it, which says what the levels are.
    """
    left = LETTER * min(NAME, max(map(len, names))) + 8 if names else 8
    height = 13.0 if names else max(1.0, min(13.0, 320 / len(rows)))
    across = Scale(0, max(epochs, 1e-9), left, WIDTH - 12)
    paths = [list[str]() for _ in range(LEVELS)]
    for place, row in enumerate(rows):
        top = 20 + place * height
        for start, end, level in _joined(row):
            if level is not None:
                x, wide = across(start), across(end) - across(start)
                cell = f"M{number(x)} {number(top)}h{number(wide)}v{number(height)}h-{number(wide)}z"
                paths[level].append(cell)
    bottom = 20 + len(rows) * height
    frame = el("rect", x=left, y=20, width=across.end - left, height=bottom - 20, class_="frame")
    inside = [el("path", d="".join(cells), class_=f"h{level}") for level, cells in enumerate(paths) if cells]
    named = [
        el("text", _cut(name), x=left - 6, y=29.5 + place * height, text_anchor="end", class_="tick")
        for place, name in enumerate(names)
    ]
    ticks = [
        el("text", told, x=across(tick), y=bottom + 13, text_anchor="middle", class_="tick")
        for tick, told in across.ticks()
        if tick == round(tick)
    ]
    below = el("text", "epoch", x=(left + across.end) / 2, y=bottom + 28, text_anchor="middle")
    content = [el("text", title, x=0, y=12, class_="title"), *inside, frame, *named, *ticks, below]
    box = f"0 0 {WIDTH} {number(bottom + BOTTOM)}"
    drawing = el("svg", *content, viewBox=box, role="img", aria_label=f"{title}. {note}")
    return el("figure", drawing, el("figcaption", note))


def level_of(share: float) -> int | None:
    """The level of a share from 0 to 1; None of nothing."""
    return None if share <= 0 else min(LEVELS - 1, max(0, math.ceil(round(share * LEVELS, 6)) - 1))


def _joined(row: Row) -> list[tuple[float, float, int | None]]:
    """Neighbours of one level as one cell."""
    found: list[tuple[float, float, int | None]] = []
    for start, end, level in row:
        if found and found[-1][2] == level and found[-1][1] == start:
            found[-1] = (found[-1][0], end, level)
        else:
            found.append((start, end, level))
    return found


def _cut(name: str) -> str:
    """The end of a long path tells more than its beginning."""
    name = clean(name)
    return name if len(name) <= NAME else "…" + name[1 - NAME :]

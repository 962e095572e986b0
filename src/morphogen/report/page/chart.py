"""A chart as SVG: two axes, and what lies between them. Text stays text; colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from .elements import el, number
from .series import Series

WIDTH, HEIGHT = 380, 270
"""Units of a chart; as wide as a large phone is in pixels, so that its text is read there."""

LEFT, TOP, BOTTOM = 46, 14, 40
LETTER = 6.6
"""Units of a letter, on average."""

SAMPLE = 16
"""Units of the piece of line before a label: text is in the text's colour, which is read best."""

GAP = 13.5
"""Units between two labels."""


@dataclass(frozen=True)
class Scale:
    """From values to places.

    Attributes:
        low, high: the least and the largest value.
        start, end: their places.
        log: whether equal steps are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @staticmethod
    def of(values: Iterable[float], start: float, end: float, *, log: bool = False, room: float = 0.04) -> Scale:
        """One that holds the values, with some room at both ends."""
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
        low, high = min(finite), max(finite)
        if log:
            ratio = max((high / low) ** room, 1.02)
            return Scale(low / ratio, high * ratio, start, end, log=True)
        wide = (high - low) * room or max(abs(high) * 0.05, 1e-9)
        return Scale(low - wide, high + wide, start, end)

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Round values, about so many, and how they are written: 1, 2 and 5 times powers of ten."""
        if self.log and self.high / self.low > 8:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ticks = [step * 10.0**power for power in decades for step in ((1, 2, 5) if len(decades) < 4 else (1,))]
            return [(tick, figure(tick)) for tick in ticks if self.low <= tick <= self.high]
        rough = (self.high - self.low) / count
        power = math.floor(math.log10(rough))
        step = 10.0**power * next(each for each in (1, 2, 5, 10) if each * 10.0**power >= rough * 0.999)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))  # as many as tell two ticks apart
        plain = step > 1e-4 and max(abs(first), abs(last)) * step < 1e5
        ticks = [round(n * step, 12) for n in range(first, last + 1)]
        return [(tick, f"{tick:,.{decimals}f}" if plain else figure(tick)) for tick in ticks]


class Chart:
    """A chart that is drawn into.

    Attributes:
        x, y: its scales.
    """

    def __init__(
        self,
        title: str,
        x: tuple[str, Iterable[float]],
        y: tuple[str, Iterable[float]],
        *,
        log: bool = False,
        labels: Sequence[str] = (),
        height: int = HEIGHT,
    ):
        """
        Args:
            title: above it.
            x, y: what is on each axis, and all values that it must hold.
            log: whether the first axis is logarithmic.
            labels: that will stand at the right of it, for which there must be room.
            height: in units.
        """
        right = min(156.0, max((LETTER * len(label) + 12 + SAMPLE for label in labels), default=14.0))
        self.title, self.height, self._labels = title, height, list[tuple[float, float, str, str]]()
        self.x = Scale.of(x[1], LEFT, WIDTH - right, log=log)
        self.y = Scale.of(y[1], height - BOTTOM, TOP + 18)
        self._inside: list[Element] = []
        self._frame = [
            el("text", title, x=0, y=12, class_="title"),
            *self._axes(),
            el("text", x[0], x=(self.x.start + self.x.end) / 2, y=height - 6, text_anchor="middle"),
            el("text", y[0], x=self.x.start - 40, y=TOP + 11, class_="tick"),
        ]

    def _axes(self) -> Iterable[Element]:
        left, right, bottom = self.x.start, self.x.end, self.y.start
        for tick, told in self.y.ticks():
            place = self.y(tick)
            yield el("path", d=f"M{number(left)} {number(place)}H{number(right)}", class_="rule")
            yield el("text", told, x=left - 6, y=place + 3.5, text_anchor="end", class_="tick")
        for tick, told in self.x.ticks():
            place = self.x(tick)
            yield el("path", d=f"M{number(place)} {number(bottom)}v4", class_="axis")
            yield el("text", told, x=place, y=bottom + 16, text_anchor="middle", class_="tick")
        yield el("path", d=f"M{number(left)} {number(bottom)}H{number(right)}", class_="axis")

    def line(self, points: Sequence[tuple[float, float]], look: str) -> None:
        """A line through points, by its class in the style sheet."""
        if points:
            self._inside.append(el("path", d=self._path(points), class_=f"{look} line"))

    def steps(self, points: Sequence[tuple[float, float]], end: float, look: str) -> None:
        """A line that keeps each value up to the next point, the last up to `end`."""
        corners, before = [], None
        for x, y in points:
            corners += [(x, before)] if before is not None else []
            corners.append((x, y))
            before = y
        if before is not None:
            self.line([*corners, (end, before)], look)

    def band(self, points: Sequence[tuple[float, float, float]], look: str) -> None:
        """What lies between two lines: (x, low, high) each."""
        if len(points) > 1:
            there = [(x, low) for x, low, _ in points]
            back = [(x, high) for x, _, high in reversed(points)]
            self._inside.append(el("path", d=f"{self._path(there + back)}Z", class_=f"{look} band"))

    def bars(self, points: Sequence[tuple[float, float, float]], look: str) -> None:
        """An upright line from low to high at each point."""
        for x, low, high in points:
            self._inside.append(el("path", d=self._path([(x, low), (x, high)]), class_=f"{look} line thin"))

    def dot(self, x: float, y: float, series: Series, told: str = "") -> None:
        """A marker; `told` is shown when it is pointed at."""
        self._inside.append(series.dot(self.x(x), self.y(y), told))

    def small(self, x: float, y: float, look: str) -> None:
        """A small dot."""
        self._inside.append(el("circle", cx=self.x(x), cy=self.y(y), r=1.8, class_=f"{look} dot"))

    def ring(self, x: float, y: float) -> None:
        """Around what was chosen."""
        self._inside.append(el("circle", cx=self.x(x), cy=self.y(y), r=9, class_="ring"))

    def named(self, x: float, y: float, text: str) -> None:
        """A short text beside a point."""
        self._inside.append(el("text", text, x=self.x(x) + 7, y=self.y(y) - 5, class_="named tick"))

    def label(self, x: float, y: float, text: str, look: str) -> None:
        """A text at the right, joined to a point: they are moved apart where they would meet."""
        self._labels.append((self.x(x), self.y(y), text, look))

    def element(self, note: str = "") -> Element:
        """The chart, with a note below it."""
        box = f"0 0 {WIDTH} {self.height}"
        content = [*self._frame, *self._inside, *self._placed()]
        drawing = el("svg", *content, viewBox=box, role="img", aria_label=f"{self.title}. {note}".strip())
        return el("figure", drawing, el("figcaption", note) if note else None)

    def _placed(self) -> Iterable[Element]:
        labels = sorted(self._labels, key=lambda label: label[1])
        places = apart([label[1] for label in labels], self.y.end, self.y.start)
        for (x, y, text, look), place in zip(labels, places, strict=True):
            left = self.x.end + 6
            if left - x > 8 or abs(place - y) > 4:
                path = f"M{number(x)} {number(y)}L{number(left - 1)} {number(place)}"
                yield el("path", d=path, class_="leader")
            yield el("path", d=f"M{number(left)} {number(place)}h{SAMPLE - 4}", class_=f"{look} line")
            yield el("text", text, x=left + SAMPLE, y=place + 4)

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{number(self.x(x))} {number(self.y(y))}" for x, y in points)


def apart(places: Sequence[float], top: float, bottom: float) -> list[float]:
    """Ascending places, moved as little as needed to be GAP apart; below `bottom` only where there are too many."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + GAP if found else top))
    limit = bottom
    for i in reversed(range(len(found))):
        found[i] = max(min(found[i], limit), top + i * GAP)
        limit = found[i] - GAP
    return found


def figure(value: float) -> str:
    """A number as it stands at an axis or in a table."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.3g}"
    return f"{value:,.10g}" if value == round(value) else f"{value:.3g}"


def unit_of(largest: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest unit of which there are at least two; units from the smallest on."""
    return next((each for each in reversed(units) if largest >= 2 * each[0]), units[0])


SECONDS = ((1.0, "s"), (60.0, "minutes"), (3600.0, "hours"))
FLOPS = ((1e6, "MFLOPs"), (1e9, "GFLOPs"), (1e12, "TFLOPs"), (1e15, "PFLOPs"), (1e18, "EFLOPs"))

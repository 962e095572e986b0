"""Which method is which in all pictures of a page: a colour, a dash, a marker, and a short name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from .elements import el, number
from .style import SERIES

DENSE = "Dense"
MARKERS = (
    "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0Z",
    "M-3.6-3.6H3.6V3.6H-3.6Z",
    "M0-4.6L4.4 3.4H-4.4Z",
    "M0-5L4.4 0L0 5L-4.4 0Z",
    "M0 4.6L4.4-3.4H-4.4Z",
    "M-4.6-1.5H-1.5V-4.6H1.5V-1.5H4.6V1.5H1.5V4.6H-1.5V1.5H-4.6Z",
)
"""Circle, square, triangle, diamond, triangle on its head, cross."""

LONGEST = 20
"""Characters of a short name."""

SAME_TIME = "Dense in the time of "
"""How a comparison calls a dense run that is as long as a method's."""


@dataclass(frozen=True)
class Series:
    """How one method is drawn.

    Attributes:
        name: short, and no other's.
        method: as it was given.
        look: its classes in the style sheet.
        marker: a path around (0, 0).
        same_time: it is a dense run of a method's time.
    """

    name: str
    method: str
    look: str
    marker: str
    same_time: bool = False

    def dot(self, x: float, y: float, told: str = "") -> Element:
        """Its marker at a place."""
        place, look = f"translate({number(x)} {number(y)})", f"{self.look} {'hollow' if self.same_time else 'dot'}"
        return el("path", el("title", told) if told else None, d=self.marker, transform=place, class_=look)


def series_of(methods: Iterable[str]) -> dict[str, Series]:
    """One for each method, in their order; the dense network is drawn in the colour of the text."""
    known = list(dict.fromkeys(methods))
    own = [method for method in known if method != DENSE and not method.startswith(SAME_TIME)]
    short = [_short(method) for method in own]
    found = {DENSE: Series(DENSE, DENSE, "dense d0", MARKERS[0])} if DENSE in known else {}
    for n, (method, name) in enumerate(zip(own, short, strict=True)):
        alone = f"{name} {short[:n].count(name) + 1}" if short.count(name) > 1 else name
        turn = (n + n // SERIES) % SERIES  # past the last colour, another dash and marker
        found[method] = Series(alone, method, f"s{n % SERIES} d{turn}", MARKERS[turn])
    for method in known:
        if method.startswith(SAME_TIME):
            whose = found.get(method.removeprefix(SAME_TIME))
            marker = MARKERS[0] if whose is None else whose.marker
            name = f"Dense as long as {'a method' if whose is None else whose.name}"
            found[method] = Series(name, method, "dense d2 thin", marker, same_time=True)
    return {method: found[method] for method in known}


def key(series: Iterable[Series]) -> Element:
    """Colours, markers and short names beside what was run."""
    return el("ul", *(el("li", _sample(each), el("strong", each.name), _whole(each)) for each in series), class_="key")


def _sample(series: Series) -> Element:
    line = el("path", d="M2 8H42", class_=f"{series.look} line")
    return el("svg", line, series.dot(22, 8), viewBox="0 0 44 16", aria_hidden="true")


def _whole(series: Series) -> Element | None:
    return None if series.method == series.name or series.same_time else el("code", series.method)


def _short(method: str) -> str:
    """`NetworkExpansion` of `NetworkExpansion(stages=3)`; sums keep all their names."""
    bare, depth = "", 0
    for letter in method:
        depth += (letter == "(") - (letter == ")")
        bare += letter if depth <= 0 and letter != ")" else ""
    name = " ".join(bare.split()) or "method"
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"

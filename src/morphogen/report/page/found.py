"""What searches saw, and what a group lasso made of the channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar
from xml.etree.ElementTree import Element

from ..records import Record
from ..searches import axes_of, is_without_training, point_of, search_rows, search_title
from .chart import Chart
from .elements import details, el, table
from .heat import heat_map
from .series import MARKERS, Series
from .style import LEVELS, SERIES

T = TypeVar("T")

MOST_CELLS = 160
"""Rows, and columns, of a sparsity map; of more, every so many."""


def draw_searches(searches: Sequence[Record]) -> Element:
    """Loss against time of a step of every candidate: one chart and one table a search."""
    charts = [_search(search) for search in searches]
    tables = [el("div", el("h4", search_title(search)), table(search_rows(search))) for search in searches]
    return el("div", el("div", *charts, class_="grid"), details("The candidates as tables", *tables))


def _search(search: Record) -> Element:
    """Markers are resolutions, numbers are blocks or shares of the layers, the ring is what was chosen."""
    finite = [each for each in search["candidates"] if each["loss"] is not None]
    sizes = list(dict.fromkeys(_sides(each) for each in finite))
    looks = {
        size: Series(size, size, f"s{n % SERIES}", MARKERS[n % SERIES]) for n, size in enumerate(sorted(sizes, key=len))
    }
    title = f"Search before epoch {search['epoch'] + 1}"
    if not finite:
        return el("p", f"{title}: no candidate had a finite loss.")
    chart = Chart(
        title,
        (axes_of(search)[0], [point_of(each)[0] for each in finite]),
        (axes_of(search)[1], [each["loss"] for each in finite]),
        labels=sizes if any(sizes) else (),
    )
    what, seen, number_is = "blocks", "loss", "of blocks"
    if is_without_training(search):
        what, seen, number_is = "of the layers", "proxies", "the share of the layers that train"
    named = set[str]()
    for number, each in enumerate(search["candidates"]):
        if each["loss"] is None:
            continue
        (x, name), y, size = point_of(each), each["loss"], _sides(each)
        if number == search["chosen"]:
            chart.ring(x, y)
        chart.dot(x, y, looks[size], f"{name} {what} {size}, {seen} {y:.4f}")
        chart.named(x, y, name)
        if size and size not in named:
            named.add(size)
            last = max((c for c in finite if _sides(c) == size), key=lambda c: point_of(c)[0])
            chart.label(point_of(last)[0], last["loss"], size, looks[size].look)
    return chart.element(
        f"The number is {number_is}, the marker is the input's size. The ring is the one that went on."
    )


def _sides(candidate: Record) -> str:
    return " x ".join(map(str, candidate["resolution"] or ()))


def draw_sparsity(pruned: Record) -> Element:
    """The largest weight of every output channel over the epochs: one map a layer."""
    threshold = pruned["threshold"]
    layers = pruned["sparsity"]
    largest = max((value for epochs in layers.values() for epoch in epochs for value in epoch), default=0)
    top = max(largest, 10 * threshold, 1e-30)
    maps = []
    for layer, epochs in layers.items():
        channels = thinned(list(zip(*epochs, strict=True)))  # a row a channel
        columns = thinned(range(len(epochs)))
        ends = [*columns[1:], len(epochs)]
        rows = [
            [(n, end, _log_level(row[n], threshold, top)) for n, end in zip(columns, ends, strict=True)]
            for row in channels
        ]
        maps.append(
            heat_map(
                f"{layer[-40:]}: {len(epochs[0]) if epochs else 0} channels",
                (),
                rows,
                len(epochs),
                f"A row an output channel. Strength is the largest |weight|, from {threshold:g} to {top:.2g} on a log "
                "scale; empty is below the threshold, or taken out.",
            )
        )
    return el("div", *maps, class_="grid")


def _log_level(value: float, threshold: float, top: float) -> int | None:
    if value < threshold or threshold <= 0 or value <= 0:
        return None
    share = math.log(value / threshold) / max(math.log(top / threshold), 1e-9)
    return min(LEVELS - 1, int(share * LEVELS))


def draw_density(pruned: Record) -> Element:
    """What is left of each layer at the end."""
    layers = pruned["density"]
    kinds = {"channels": "channels", "weights": f"weights of at least {pruned['threshold']:g}"}
    chart = Chart(
        "What is left of each layer",
        ("layer, in the order of the model", [0.0, float(len(layers))]),
        ("% of dense", [0.0, 100.0]),
        labels=list(kinds),
    )
    for number, kind in enumerate(kinds):
        chart.steps([(n, 100 * layer[kind]) for n, layer in enumerate(layers)], len(layers), f"s{number} d{number}")
        chart.label(len(layers), 100 * layers[-1][kind], kind, f"s{number}")
    rows = [
        {
            "layer": each["layer"],
            "channels %": f"{100 * each['channels']:.1f}",
            "weights %": f"{100 * each['weights']:.1f}",
        }
        for each in layers
    ]
    note = f"Channels: input times output. Weights: those of at least {pruned['threshold']:g}."
    return el("div", chart.element(note), details("As a table", table(rows)))


def thinned(items: Iterable[T]) -> list[T]:
    """At most MOST_CELLS of them, evenly."""
    found = list(items)
    step = -(-len(found) // MOST_CELLS)
    return found[:: max(1, step)]

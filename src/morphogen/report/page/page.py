"""The page of one or more output folders."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from ... import __version__
from ..headline import headline_rows
from ..outputs import Output, drawn
from ..records import Record, by_method, measured
from ..render import summary
from ..savings.rows import saving_rows
from ..savings.shares import pruned_runs
from .curves import draw_courses, draw_fronts
from .elements import details, document, el, table
from .found import draw_density, draw_searches, draw_sparsity
from .series import DENSE, Series, key, series_of
from .shape import Shape, changes, draw_shape
from .style import style
from .times import draw_times

OPEN = 3
"""Methods whose runs are shown at once; those of more are folded."""


def report(outputs: Sequence[Output]) -> str:
    """The page as HTML.

    Raises:
        ConfigError: a record that no picture can be made of.
    """
    names = [output.folder.resolve().name or "run" for output in outputs]  # paths of a machine are not shared
    body: list[Element] = [el("h1", names[0] if len(names) == 1 else "Report")]
    if len(names) > 1:
        body.append(el("ul", *(el("li", el("a", name, href=f"#run{n}")) for n, name in enumerate(names))))
    for number, (name, output) in enumerate(zip(names, outputs, strict=True)):
        parts = drawn(output.folder, lambda output=output: _output(output))
        heading = el("h2", name) if len(names) > 1 else None
        body.append(el("section", heading, *parts, id=f"run{number}"))
    body.append(el("p", f"Made by morphogen report, Morphogen {__version__}.", class_="soft"))
    return document(f"{names[0]}: Morphogen" if len(names) == 1 else "Morphogen: report", style(), body)


def _output(output: Output) -> list[Element | None]:
    records, full = output.records, output.full or output.records
    methods = by_method(records)
    series = series_of([*methods, *(output.fronts.knots if output.fronts else ())])
    first = records[0]
    seeds = max(len({run["seed"] for run in runs}) for runs in methods.values())
    subject = f"{first['model']} on {first['data']}, {_count(len(records), 'run')}, {_count(seeds, 'seed')}"
    parts: list[Element | None] = [el("p", subject, class_="soft"), key(series.values())]
    for record in records:
        if record["stopped"]:
            parts.append(el("p", el("strong", "Stopped: "), f"{record['method']}, {record['stopped']}"))
    if output.fronts is not None:
        parts += [el("h3", "Accuracy against cost"), draw_fronts(output.fronts, series, measured(records))]
        parts.append(el("p", f"Seconds are of {output.fronts.seconds_of}.", class_="soft"))
        if output.fronts.speedups:
            rows = headline_rows(output.fronts.speedups, output.fronts.end_to_end)
            parts += [el("h3", "Speedup at equal accuracy"), table(_named(rows, series))]
    parts += [el("h3", "Results"), table(_named(_results(full), series))]
    parts += [el("h3", "Accuracy during training"), draw_courses(full, series)]
    parts += [el("h3", "Time"), draw_times(full, series)]
    if rows := saving_rows(full):
        parts += [el("h3", "What pruning left, in % of the dense network"), table(_named(rows, series))]
    shown = {method: part for method, runs in by_method(full).items() if (part := _run(runs[0]))}
    for method, part in shown.items():
        parts.append(el("h3", f"The network under {series[method].name}"))
        parts += part if len(shown) <= OPEN else [details("Its shape over time", *part)]
    parts += _settings(records)
    return parts


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _named(rows: Sequence[dict[str, str]], series: Mapping[str, Series]) -> list[dict[str, str]]:
    """The same rows with short names."""
    return [{**row, "method": series[row["method"]].name if row["method"] in series else row["method"]} for row in rows]


def _results(records: Sequence[Record]) -> list[dict[str, str]]:
    """The table of a comparison; of other runs accuracy and cost alone."""
    methods = by_method(records)
    if DENSE in methods and all("speedup" in record for record in records):
        return summary(records)
    rows = []
    for method, runs in methods.items():
        accuracies = [run["accuracy"] for run in runs]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
        memory = max(run.get("peak_memory", 0) for run in runs)
        rows.append(
            {
                "method": method,
                "accuracy %": f"{statistics.fmean(accuracies):.2f}{spread}",
                "seconds": f"{statistics.fmean(run['training_seconds'] for run in runs):.1f}",
                "TFLOPs": f"{statistics.fmean(run['flops'] for run in runs) / 1e12:.3g}",
                "peak memory (GB)": f"{memory / 1e9:.2f}" if memory else "",
            }
        )
    return rows


def _run(record: Record) -> list[Element | None]:
    """One run's shape over time, searches and sparsity; empty where nothing of it ever changed."""
    shape = Shape.of(record)
    moving = shape is not None and shape.changes
    if not (moving or record["morphs"] or record.get("searches") or record.get("pruned")):
        return []
    parts: list[Element | None] = [el("p", f"Seed {record['seed']}.", class_="soft")]
    if shape is not None and moving:
        parts.append(draw_shape(record, shape))
    parts.append(changes(record, shape))
    if record.get("rescues"):
        rows = [{key: str(each.get(key, "")) for key in ("epoch", "option", "error")} for each in record["rescues"]]
        parts += [el("h4", "Stages that were put off"), table(rows, "words")]
    if record.get("searches"):
        parts += [el("h4", "Searches"), draw_searches(record["searches"])]
    pruned = record.get("pruned")
    if pruned and pruned.get("sparsity"):
        parts += [el("h4", "Sparsity"), draw_sparsity(pruned)]
    if pruned and pruned.get("density") and pruned_runs([record]):
        parts.append(draw_density(pruned))
    return parts


def _settings(records: Sequence[Record]) -> list[Element | None]:
    """Settings, hardware and versions, each kind once."""
    parts: list[Element | None] = []
    for title, keys in (("Settings", ("recipe", "settings")), ("Hardware and versions", ("environment",))):
        known: list[Mapping[str, object]] = []
        for record in records:
            found = next((record[key] for key in keys if record.get(key)), None)
            if isinstance(found, dict) and found not in known:
                known.append(found)
        if known:
            parts.append(el("h3", title))
        parts += [_pairs(each) if title != "Settings" else details("All settings", _pairs(each)) for each in known[:8]]
    return parts


def _pairs(values: Mapping[str, object]) -> Element:
    return table([{"setting": str(key), "value": str(value)} for key, value in values.items()] or [{"": ""}], "words")

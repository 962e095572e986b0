"""The tables and the figure, from runs.jsonl."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

Record = dict[str, Any]
Runs = Mapping[tuple[str, str], Record]
Row = dict[str, str]

OUTCOMES = ("ok", "refused", "wrong", "failed")
STEPS = ("trace", "narrow", "grow")


def read(path: Path) -> Runs:
    """The latest record of each model and tool; a line that was cut off is not there."""
    runs: dict[tuple[str, str], Record] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        runs[record["model"], record["tool"]] = record
    return runs


def render(runs: Runs, folder: Path) -> None:
    """Print the summary; write zoo.md, zoo.csv and zoo.png beside the runs."""
    from rich.console import Console

    from morphogen.report.render import as_markdown, as_table

    ours = [record for (_, tool), record in runs.items() if tool == "morphogen"]
    peers = {model: record for (model, tool), record in runs.items() if tool == "torch-pruning"}
    if not ours:
        print("no runs yet")
        return
    titled = {
        "Summary": summary(ours, list(peers.values())),
        "By architecture file": by_file(ours, peers),
        "Models": [row(record, peers.get(record["model"])) for record in sorted(ours, key=lambda r: r["model"])],
        "What was not ok": [
            {"model": r["model"], "outcome": r["outcome"], "step": r.get("step", ""), "message": r["message"]}
            for r in sorted(ours, key=lambda r: (OUTCOMES.index(r["outcome"]), r.get("message", "")))
            if r["outcome"] != "ok"
        ],
    }
    escaped = {
        title: [{k: v.replace("|", "\\|") for k, v in r.items()} for r in rows] for title, rows in titled.items()
    }
    text = "\n\n".join(f"## {title}\n\n{as_markdown(rows)}" for title, rows in escaped.items() if rows)
    (folder / "zoo.md").write_text(f"# The zoo\n\n{about(ours)}\n\n{text}\n")
    with open(folder / "zoo.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, titled["Models"][0])
        writer.writeheader()
        writer.writerows(titled["Models"])
    draw(ours, folder / "zoo.png")
    console = Console()
    counts = ("tool", "models", *OUTCOMES)
    console.print(as_table([{key: each[key] for key in counts} for each in titled["Summary"]]))
    console.print(f"{folder / 'zoo.md'}, zoo.csv, zoo.png")


def about(ours: list[Record]) -> str:
    """What the figures are true for."""
    seen: dict[str, set[str]] = {}
    for record in ours:
        for key, value in {**record["environment"], "width": record["settings"]["width"]}.items():
            seen.setdefault(key, set()).add(str(value))
    known = "; ".join(f"{key} {', '.join(sorted(values))}" for key, values in seen.items())
    return f"{known}; one thread a model; seconds are the processor's."


def summary(ours: list[Record], peers: list[Record]) -> list[Row]:
    """Counts, one row a tool."""
    rows = []
    for tool, records in (("Morphogen", ours), ("Torch-Pruning", peers)):
        if not records:
            continue
        counts = Counter(record["outcome"] for record in records)
        checks = Counter(record.get("check", "") for record in records if record["outcome"] == "ok")
        rows.append(
            {
                "tool": tool,
                "models": str(len(records)),
                **{outcome: str(counts[outcome]) for outcome in OUTCOMES},
                "ok in training mode": str(sum(r["outcome"] == "ok" and r.get("trains", True) for r in records)),
                "checked": ", ".join(f"{n} {check}" for check, n in checks.most_common() if check),
                "blind checks": str(sum("masking changes" in str(record.get("found")) for record in records)),
                "median params at half": percent(middle(r["parameters_at_half"] for r in records if usable(r))),
                "median seconds": number(middle(map(all_seconds, records))),
            }
        )
    return rows


def by_file(ours: list[Record], peers: Mapping[str, Record]) -> list[Row]:
    """One row an architecture file."""
    from catalogue import file_of

    files: dict[str, list[Record]] = {}
    for record in ours:
        files.setdefault(file_of(record["model"]), []).append(record)
    rows = []
    for file, records in sorted(files.items()):
        counts = Counter(record["outcome"] for record in records)
        there = [peers[record["model"]] for record in records if record["model"] in peers]
        rows.append(
            {
                "file": file.replace(".models.", "."),
                "models": str(len(records)),
                **{outcome: str(counts[outcome] or "") for outcome in OUTCOMES},
                "Torch-Pruning ok": str(sum(r["outcome"] == "ok" for r in there)) if there else "",
                "slowest s": number(max(map(all_seconds, records))),
            }
        )
    return rows


def row(record: Record, peer: Record | None) -> Row:
    """One model."""
    found = record.get("found", {})
    return {
        "model": record["model"],
        "outcome": record["outcome"],
        "params M": number(record.get("parameters", 0) / 1e6),
        "input": str(record.get("input", [""])[-1]),
        "ops": str(record.get("ops", "")),
        "groups": str(record.get("groups", "")),
        "params at half": percent(record.get("parameters_at_half")),
        "FLOPs at half": percent(record.get("flops_at_half")),
        "pinned weights": f"{record['pinned_weights']} of {record['weights']}" if "weights" in record else "",
        "check": "; ".join(f"{way}: {verdict}" for way, verdict in found.items()),
        **{f"{step} s": number(seconds_of(record, step)) for step in (*STEPS, "step at half", "check")},
        "peak MiB": number(max((s["peak_mib"] for s in record.get("steps", {}).values()), default=None)),
        "all s": number(all_seconds(record)),
        "Torch-Pruning": ""
        if not peer
        else peer["outcome"] + ("" if peer.get("trains", True) else ", not in training"),
    }


def usable(record: Record) -> bool:
    """Whether the share of parameters at half width is known."""
    return "parameters_at_half" in record


def seconds_of(record: Record, step: str) -> float | None:
    """Seconds of one step on the processor, if it was finished."""
    return record.get("steps", {}).get(step, {}).get("cpu_seconds")


def all_seconds(record: Record) -> float:
    """Seconds of all finished steps on the processor, building and checking included."""
    return sum(step["cpu_seconds"] for step in record.get("steps", {}).values())


def middle(values: Any) -> float | None:
    """The median, None of nothing."""
    values = list(values)
    return median(values) if values else None


def number(value: float | None) -> str:
    """Three figures."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share."""
    return "" if value is None else f"{value:.0%}"


def draw(ours: list[Record], path: Path) -> None:
    """Seconds to trace and to morph, against the number of ops and of parameters; the legend tells the power that
    fits them best, 1 where the cost is proportional."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    traced = [record for record in ours if seconds_of(record, "trace") and record.get("ops")]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    ways: list[tuple[str, Callable[[Record], float]]] = [
        ("ops of the forward pass", lambda record: record["ops"]),
        ("parameters", lambda record: record["parameters"]),
    ]
    for ax, (what, size) in zip(axes, ways, strict=True):
        for step, marker in zip(STEPS, "o^s", strict=True):
            points = [(size(r), seconds) for r in traced if (seconds := seconds_of(r, step))]
            if points:
                x, y = zip(*points, strict=True)
                label = f"{step}, power {power(x, y):.1f}" if len(set(x)) > 1 else step
                ax.loglog(x, y, marker, label=label, markersize=4, alpha=0.6, markeredgewidth=0)
                ax.legend()
        ax.set_xlabel(what)
        ax.grid(which="both", alpha=0.2)
    axes[0].set_ylabel("processor seconds")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def power(x: Sequence[float], y: Sequence[float]) -> float:
    """The power p of the best y = a x^p, by least squares of the logarithms."""
    return linear_regression([log(value) for value in x], [log(value) for value in y]).slope

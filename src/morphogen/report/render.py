"""Tables, files and pictures of results."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ..errors import ConfigError
from ..machine.files import write_text
from .records import Record, by_file_name, by_method, measured
from .savings.rows import saving_rows
from .savings.write import draw_savings
from .searches import draw_searches


def _mean(runs: Sequence[Record], key: str) -> float | None:
    values = [run[key] for run in runs if run[key] is not None]
    return statistics.fmean(values) if values else None


def _mean_figure(runs: Sequence[Record], name: str) -> str:
    values = [run["epochs"][-1].get("figures", {}).get(name) for run in runs]
    return "" if None in values else f"{statistics.fmean(values):.2f}"


def _beside(records: Sequence[Record]) -> dict[str, str]:
    """The columns of what runs were tested for beside their images' size and weights: key of the record by heading."""
    sizes = sorted({record["tested_at"]["size"] for record in records if record.get("tested_at")})
    averages = {record.get("average") for record in records} - {None}
    return {f"at {size} %": "tested_at" for size in sizes} | ({"average": "average"} if len(averages) > 1 else {})


def _tested(runs: Sequence[Record], heading: str, key: str) -> str:
    """The cell of a method in one of these columns: a mean accuracy, or which averages were best."""
    if key == "average":
        return ", ".join(f"{run['average']:g}" for run in runs if run.get("average") is not None)
    found = [run["tested_at"] for run in runs if run.get("tested_at")]
    values = [each["accuracy"] for each in found if f"at {each['size']} %" == heading]
    return f"{statistics.fmean(values):.2f}" if len(values) == len(runs) else ""


def summary(records: Sequence[Record]) -> list[dict[str, str]]:
    """One row a method: accuracy (mean and standard deviation over seeds), gap to dense, time, speedups.

    What is called accuracy here is of the runs' metric, see `measured`; further figures of their tests come beside it.

    Raises:
        ConfigError: records of another protocol of testing are among them.
    """
    one_protocol(records)
    groups, metric = by_method(records), measured(records)
    others = dict.fromkeys(name for record in records for name in record["epochs"][-1].get("figures", {}))
    beside = _beside(records)
    dense = _mean(groups["Dense"], "accuracy") or 0.0
    rows = []
    for method, runs in groups.items():
        accuracies = [run["accuracy"] for run in runs]
        mean = statistics.fmean(accuracies)
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
        realised = _mean(runs, "realised")
        rows.append(
            {
                "method": "  dense in the same time" if method.startswith("Dense in") else method,
                f"{metric} %": f"{mean:.2f}{spread}",
                "best epoch %": f"{statistics.fmean(map(best_epoch, runs)):.2f}",
                "gap (points)": f"{mean - dense:+.2f}",
                **{f"{name} %": _mean_figure(runs, name) for name in others},
                **{heading: _tested(runs, heading, key) for heading, key in beside.items()},
                "seconds": f"{_mean(runs, 'training_seconds'):.1f}",
                "speedup": f"{_mean(runs, 'speedup'):.2f}x",
                "FLOP speedup": f"{_mean(runs, 'flop_speedup'):.2f}x",
                "realised": "" if realised is None or method.startswith("Dense") else f"{realised:.2f}",
            }
        )
    return rows


def one_protocol(records: Sequence[Record]) -> str:
    """How all of these were tested; empty where old records do not say.

    Raises:
        ConfigError: some were tested otherwise.
    """
    protocols = list(dict.fromkeys(record.get("protocol", "") for record in records))
    if len(protocols) > 1:
        raise ConfigError(
            "figures of another protocol are among these",
            expected=protocols[0] or "none named",
            found=protocols[1] or "none named",
            todo="Make a table of each by itself",
        )
    return protocols[0] if protocols else ""


def best_epoch(run: Record) -> float:
    """The highest test accuracy after any epoch; what papers print may be this one or the last."""
    return max(epoch["accuracy"] for epoch in run["epochs"])


def as_table(rows: Sequence[dict[str, str]], title: str = "", *, narrow: bool = False) -> Table:
    """A table for the terminal, the first column to the left, figures to the right.

    Where it is narrow, the headings of figures break at their spaces, which leaves room for the first column.
    """
    table = Table(title=title or None, title_justify="left")
    for i, name in enumerate(rows[0]):
        words = [*name.split(), *(row[name] for row in rows)]
        widest = max(map(len, words)) if narrow and i else None
        table.add_column(name, justify="right" if i else "left", overflow="fold", max_width=widest)
    for row in rows:
        table.add_row(*row.values())
    return table


def fitted(rows: Sequence[dict[str, str]], width: int, kept: Sequence[str]) -> list[dict[str, str]]:
    """The rows with as many of their columns as a narrow table of so many characters has room for, last ones out first.

    The first column and those in `kept` always stay.
    """
    names = list(rows[0])
    room = {name: max(map(len, [*name.split(), *(row[name] for row in rows)])) for name in names}
    room[names[0]] = 16  # the first column breaks at its spaces
    for name in names[:0:-1]:
        if sum(room[each] + 3 for each in names) + 1 <= width:
            break
        if name not in kept:
            names.remove(name)
    return [{name: row[name] for name in names} for row in rows]


def as_markdown(rows: Sequence[dict[str, str]]) -> str:
    """The same rows as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(row.values()) + " |" for row in rows])


def write_results(records: Sequence[Record], folder: Path) -> None:
    """`results.json` (one record a run), `results.csv` (its scalars), `summary.md` and `accuracy.png`.

    For every run that searched, also what it saw, and its schedule for `Retrain`; where runs pruned, what that saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.json", json.dumps(records, indent=1) + "\n")
    flat = [
        {key: value for key, value in record.items() if not isinstance(value, (dict, list))}
        | {f"seconds_{cause}": value for cause, value in record["seconds"].items()}
        | record["epochs"][-1].get("figures", {})
        | {f"tested_at_{name}": value for name, value in (record.get("tested_at") or {}).items()}
        for record in records
    ]
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in flat for key in row)))
        writer.writeheader()
        writer.writerows(flat)
    tables = [rows for rows in (summary(records), saving_rows(records)) if rows]
    tested = [f"Tested on {protocol}."] if (protocol := one_protocol(records)) else []
    write_text(folder / "summary.md", "\n\n".join([*map(as_markdown, tables), *tested]) + "\n")
    draw_accuracy(records, folder / "accuracy.png")
    draw_savings(records, folder)
    for record in records:
        if record.get("searches"):
            name = f"{by_file_name(record['method'])}_{record['seed']}"
            draw_searches(record["searches"], folder / f"search_{name}.png")
            write_text(folder / f"schedule_{name}.json", json.dumps(record["schedule"]) + "\n")


def draw_accuracy(records: Sequence[Record], path: Path) -> None:
    """Test accuracy against training time, one line a run, morphs marked (Network Expansion, Figure 4)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, (method, runs) in enumerate(by_method(records).items()):
        for run in runs:
            seconds = [epoch["seconds"] for epoch in run["epochs"]]
            accuracy = [epoch["accuracy"] for epoch in run["epochs"]]
            axes.plot(
                seconds,
                accuracy,
                color=f"C{i}",
                alpha=0.8,
                linewidth=1.3,
                linestyle="--" if method.startswith("Dense in") else "-",
                label=method if run is runs[0] else None,
            )
            axes.plot(
                [m["total_seconds"] for m in run["morphs"]],
                [m["accuracy_after"] for m in run["morphs"]],
                color=f"C{i}",
                marker="^",
                markersize=5,
                linestyle="none",
            )
    axes.set_xlabel("training time (s), evaluation left out")
    axes.set_ylabel(f"test {measured(records)} (%)")
    axes.set_title(f"{records[0]['model']}\non {records[0]['data']} (triangles: right after a morph)", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=130)

"""`morphogen compare`: methods side by side with the dense network."""

from __future__ import annotations

from typing import Any

from ..errors import TrainingError
from ..machine.folder import owned
from ..recipes.use import what_changed, with_recipe
from ..report.fronts import speedups_at_equal_accuracy
from ..report.headline import front_rows, headline_rows, write_headline
from ..report.render import as_table, fitted, one_protocol, summary, write_results
from ..report.searches import search_rows, search_title
from ..train.compare import compare
from ..train.config import CompareConfig
from ..train.lengths import compare_lengths
from ..train.tables import TableComparison, footnote, run_table, table_comparison, table_rows
from ..train.tasks import metric_of
from .command import Command
from .terminal import WIDE, EpochProgress, console, tell_savings


def configure(given: dict[str, Any]) -> CompareConfig | TableComparison:
    """The settings of a comparison: those given, of a recipe beside its dense network, or of all rows of a table."""
    if given.get("table"):
        return table_comparison(given)
    settings = with_recipe(given)
    method = settings.pop("method", "Dense")
    if method != "Dense":
        settings.setdefault("methods", [method])
    return CompareConfig(**settings)


def run_compare(config: CompareConfig | TableComparison) -> int:
    """Train the dense network and methods side by side; print and write what was saved."""
    with owned(config.output):
        if isinstance(config, TableComparison):
            return _compare_table(config)
        if told := what_changed(config):
            print(told)
        return _compare_lengths(config) if config.budgets else _compare(config)


def _compare_table(comparison: TableComparison) -> int:
    for group in comparison.groups:
        if told := what_changed(group.config):
            print(told)
    with EpochProgress(metric_of(comparison.groups[0].config.data)) as tell:
        records, failures = run_table(comparison, tell)
    if records:
        console().print(
            as_table(table_rows(records), f"{comparison.table.name}: {comparison.table.title}", narrow=True)
        )
        print(footnote(comparison))
        print(f"results.json and summary.md are in {comparison.output}, the runs in its folders")
    if failures:
        raise TrainingError("; ".join(failures))
    return 0


def _compare(config: CompareConfig) -> int:
    with EpochProgress(metric_of(config.data)) as tell:
        records, failures = compare(config, tell)
    if not records:
        raise TrainingError("; ".join(failures))
    write_results(records, config.output)
    for record in records:
        for search in record.get("searches", ()) if record["seed"] == config.first_seed else ():
            console().print(as_table(search_rows(search), f"{record['method']}, {search_title(search)}"))
    kept = (f"{metric_of(config.data)} %", "gap (points)", "seconds", "speedup", "FLOP speedup")
    rows = fitted(summary(records), console().width, kept)  # all are in summary.md
    longer = "" if config.stretch == 1 else f", methods {round(config.epochs * config.stretch)}"
    title = f"{config.model} on {records[0]['data']}, {config.epochs} epochs{longer}"
    console().print(as_table(rows, title, narrow=console().width < WIDE))
    print(f"tested on {one_protocol(records)}")
    tell_savings(records)
    print(f"results.json, results.csv, summary.md and accuracy.png are in {config.output}")
    if failures:
        raise TrainingError("; ".join(failures))
    return 0


def _compare_lengths(config: CompareConfig) -> int:
    with EpochProgress(metric_of(config.data)) as tell:
        found = compare_lengths(config, tell)
    if not any(point.method == "Dense" and point.budget == 1 for point in found.points):
        raise TrainingError("; ".join(found.failures))
    speedups = speedups_at_equal_accuracy(found.points)
    timing = "step times, taken apart" if found.apart else "the runs themselves"
    metric = metric_of(config.data)
    head = {**found.head, "metric": metric, "seconds_of": timing, "end_to_end": found.end_to_end}
    write_headline(found.points, speedups, head, config.output)
    title = f"{config.model} on {found.head['recipe']['data']}, seconds of {timing}"
    console().print(as_table(front_rows(found.points, metric), title))
    if speedups:
        rows = headline_rows(speedups, found.end_to_end, metric)
        console().print(as_table(rows, f"speedup at equal {metric}"))
    print(f"fronts.json, fronts.csv, fronts.md and fronts.png are in {config.output}")
    if found.failures:
        raise TrainingError("; ".join(found.failures))
    return 0


COMPARE = Command(
    "compare",
    CompareConfig,
    run_compare,
    """examples:
  morphogen compare
  morphogen compare --data /data/cifar10 --seeds 3 --epochs 30 \\
      --methods "[NetworkExpansion(operator='orthogonal'), NetworkExpansion(operator='random')]"
  morphogen compare --config study.yaml
with some of the time that a method saves spent on half as many epochs again:
  morphogen compare --stretch 1.5
a paper's table, its figures beside what is measured; small, on a CPU:
  morphogen compare --table network-expansion/4 --data cifar100:/data/cifar100
  morphogen compare --table network-expansion/4 --data /data/cifar10 --scale 0.05 --output runs/table4
speed at equal accuracy, from complete runs of several lengths (a minute on a CPU; then a study):
  morphogen compare --budgets "[0.5, 1, 1.5]" --seeds 3 --model "resnet8(width=8)" --epochs 10 \\
      --methods "[ProgressiveResizing(ratio=0.75)]" --output runs/fronts
  morphogen compare --config study.yaml --budgets "[0.3, 0.5, 0.75, 1, 1.25]" --seeds 5 --parallel 2""",
    configure=configure,
    again="continue with the same command",
)

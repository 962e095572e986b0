"""Tables 2, 5, 6, 8 and VIII of AutoProg, at the scale of one CPU core.

    python benchmarks/autoprog.py --data FOLDER [--config benchmarks/autoprog.yaml]

Runs `morphogen compare` with the config (finished runs are kept, so it goes on where it was stopped), then once more
with the schedule that AutoProg found with seed 0 (`Retrain`, Table VIII), and prints for each method the accuracy after
the first epoch of its second stage (Table 5) and after the last, the speedups, and the share of the time that searching
took. The retraining does not take turns with the dense run, so its speedup is that in FLOPs; so is that of runs marked
`timed_apart`.
Writes autoprog.md beside the comparison's own results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

import yaml

from morphogen.cli import main as morphogen
from morphogen.report.render import as_markdown, by_method

HERE = Path(__file__).parent


def table(records: list[dict]) -> list[dict[str, str]]:
    """One row a method."""
    rows = []
    for method, runs in by_method(records).items():
        retrained = method.startswith("Retrain")
        timed = [run["speedup"] for run in runs if not retrained and not run.get("timed_apart")]
        predicted = [run["predicted_speedup"] for run in runs if run["predicted_speedup"]]
        overhead = [sum(run["seconds"][c] for c in ("search", "morph", "trace")) for run in runs]
        shares = [100 * spent / run["training_seconds"] for spent, run in zip(overhead, runs, strict=True)]
        rows.append(
            {
                "method": "Retrain(schedule of seed 0)" if retrained else method,
                "top-1 @ growth %": spread([v for run in runs if (v := at_growth(run)) is not None]),
                "top-1 %": spread([run["accuracy"] for run in runs]),
                "speedup": f"{statistics.fmean(timed):.2f}x" if timed else "",
                "FLOP speedup": f"{statistics.fmean(run['flop_speedup'] for run in runs):.2f}x",
                "predicted": f"{statistics.fmean(predicted):.2f}x" if predicted else "",
                "trace, morph, search %": f"{statistics.fmean(shares):.1f}",
            }
        )
    return rows


def at_growth(run: dict) -> float | None:
    """Accuracy after the first epoch of the second stage of four; None for a dense run."""
    if run["method"].startswith("Dense"):
        return None
    second = max(epoch["epoch"] for epoch in run["epochs"]) // 4 + 1
    # An epoch that was thrown away comes again.
    return [epoch["accuracy"] for epoch in run["epochs"] if epoch["epoch"] == second][-1]


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--config", type=Path, default=HERE / "autoprog.yaml")
    options = parser.parse_args()
    output = HERE / "results" / options.config.stem
    command = ["compare", "--config", str(options.config), "--data", options.data, "--output", str(output)]
    methods = yaml.safe_load(options.config.read_text())["methods"]
    found = os.path.relpath(output / "schedule_AutoProg_search_epochs=1_0.json")  # part of the method's name
    for more in ([], [f"Retrain(file='{found}')"]):
        code = morphogen([*command, "--methods", json.dumps([*methods, *more])])
        if code:
            raise SystemExit(code)
    text = as_markdown(table(json.loads((output / "results.json").read_text())))
    (output / "autoprog.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

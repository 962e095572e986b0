"""Table 4 of AutoProg and the depth part of Table 2 of Network Expansion, at the scale of one CPU core.

    python benchmarks/growth_operators.py --data FOLDER [--config benchmarks/growth_operators.yaml]

AutoProg's Identity is `rezero`. Accuracy at growth is measured at the second stage's own resolution, so only methods
with the same resolution there compare.

Runs `morphogen compare` with the config (finished runs are kept, so it goes on where it was stopped) and prints, for
each method, the accuracy after the first epoch of its second stage and after the last.
Writes growth.md beside the comparison's own results.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from morphogen.cli import main as morphogen
from morphogen.report.render import as_markdown, by_method

HERE = Path(__file__).parent


def growth_table(records: list[dict]) -> list[dict[str, str]]:
    """One row a method: accuracy after the first epoch of the second stage, and after the last (percent).

    Runs marked `timed_apart` did not take turns with the dense run, so their time says nothing.
    """
    rows = []
    for method, runs in by_method(records).items():
        at_growth = [run["epochs"][run["morphs"][0]["epoch"]]["accuracy"] for run in runs if run["morphs"]]
        final = [run["accuracy"] for run in runs]
        timed = [run["speedup"] for run in runs if not run.get("timed_apart")]
        flops = statistics.fmean(run["flop_speedup"] for run in runs)
        rows.append(
            {
                "method": "  dense in the same time" if method.startswith("Dense in") else method,
                "top-1 @ growth %": _spread(at_growth) if at_growth else "",
                "top-1 %": _spread(final),
                "speedup": f"{statistics.fmean(timed):.2f}x" if timed else "",
                "FLOP speedup": f"{flops:.2f}x",
            }
        )
    return rows


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--config", type=Path, default=HERE / "growth_operators.yaml")
    options = parser.parse_args()
    output = HERE / "results" / options.config.stem
    code = morphogen(["compare", "--config", str(options.config), "--data", options.data, "--output", str(output)])
    if code:
        raise SystemExit(code)
    table = as_markdown(growth_table(json.loads((output / "results.json").read_text())))
    (output / "growth.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()

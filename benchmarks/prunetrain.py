"""PruneTrain's Tables 1 and 2 and Figures 2, 4, 8, 9, 11 and 12 at the scale of one CPU core.

    python benchmarks/prunetrain.py --data FOLDER [--config benchmarks/prunetrain.yaml] [--first_seed 0] [--seeds 3]

Runs `morphogen compare` with the config (finished runs are kept, so it goes on where it was stopped), then SSL, which
begins with a trained network and so gets two and a half times the epochs: as long as dense training, then as long
again with the penalty at full size, then half as long to fine-tune. Its runs are appended to ssl.jsonl; they do not
take turns with the others, their FLOPs and accuracy count, their times are of the same core, right after.
Writes prunetrain.md beside the comparison's own results and pictures.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from morphogen.cli import main as morphogen
from morphogen.methods import build_method
from morphogen.report.ledger import environment
from morphogen.report.render import as_markdown, summary
from morphogen.report.savings.rows import saving_rows
from morphogen.report.savings.shares import images_of
from morphogen.train.compare import speedups
from morphogen.train.config import CompareConfig
from morphogen.train.loop import Run
from morphogen.train.sources import load_data

HERE = Path(__file__).parent
SSL = "SSL(ratio=0.8, proximal=True)"
LONGER = 2.5


def run_ssl(config: CompareConfig, path: Path) -> list[dict[str, Any]]:
    """Train SSL with every seed that is not in the file yet; returns all its records."""
    longer = replace(config, epochs=round(LONGER * config.epochs))
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    data = load_data(longer)
    for seed in config.all_seeds:
        if any(record["seed"] == seed for record in records):
            continue
        run = Run(longer, data, build_method(SSL), SSL, seed)
        for epoch in run.epochs():
            print(
                f"{SSL}, seed {seed}, epoch {epoch.epoch + 1} of {run.total_epochs}, {epoch.accuracy:.2f} %", flush=True
            )
        recipe = {**asdict(longer), "data": data.name, "output": None}
        records.append({**run.ledger.record(), "recipe": recipe, "environment": environment(run.device)})
        with open(path, "a") as file:
            file.write(json.dumps(records[-1]) + "\n")
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--config", type=Path, default=HERE / "prunetrain.yaml")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args()
    settings = yaml.safe_load(options.config.read_text()) | {"data": options.data, "first_seed": options.first_seed}
    settings["seeds"] = options.seeds or settings["seeds"]
    output = settings["output"] = options.output or HERE / "results" / options.config.stem
    arguments = ["compare", "--config", str(options.config), "--data", options.data, "--output", str(output)]
    code = morphogen([*arguments, "--seeds", str(settings["seeds"]), "--first_seed", str(options.first_seed)])
    if code:
        raise SystemExit(code)
    records = json.loads((output / "results.json").read_text())
    dense = {record["seed"]: record for record in records if record["method"] == "Dense"}
    ssl = run_ssl(CompareConfig(**settings), output / "ssl.jsonl")
    for run in (run for run in ssl if run["seed"] in dense):
        # What it cost is measured by the usual run, not by a dense one that is as long as its own.
        stages = dense[run["seed"]]["stages"]
        run["pruned"]["dense"] |= {"steps": sum(s["steps"] for s in stages), "images": sum(map(images_of, stages))}
        records.append({**run, **speedups(run, dense[run["seed"]])})
    text = as_markdown(summary(records)) + "\n\n" + as_markdown(saving_rows(records))
    (output / "prunetrain.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

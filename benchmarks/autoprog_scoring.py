"""AutoProg with either scoring, against Prog and dense training at equal time.

    python benchmarks/autoprog_scoring.py --data FOLDER [--seeds 5] [--first_seed 0]
    python benchmarks/autoprog_scoring.py --toy                      # one seed on synthetic images, to try it

Runs `morphogen compare` with autoprog_scoring.yaml, which trains dense, AutoProg (`fitted`), AutoProg (`literal`) and
Prog, and dense runs in the time of each; then, seed by seed, what is left in the time of AutoProg (`fitted`): each
other method whose own time differs from it by more than 5 % once more, as a complete run shortened or lengthened to it.
Finished runs are kept in runs.jsonl and equal_time.jsonl, so it goes on where it was stopped. Writes equal_time.md
beside them: accuracy at that time, with the standard error over seeds, the differences from Prog seed by seed, and what
the searches found.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from morphogen.cli import main as morphogen
from morphogen.methods import build_method
from morphogen.report.ledger import environment
from morphogen.report.render import as_markdown
from morphogen.train.compare import in_time_of
from morphogen.train.config import CompareConfig
from morphogen.train.loop import Run
from morphogen.train.sources import load_data

CONFIG = Path(__file__).with_suffix(".yaml")
REFERENCE = "AutoProg"
"""Whose time all others get."""
CLOSE = 0.05
"""Times that differ by a smaller share are equal."""
TOY: dict[str, Any] = {
    "model": "timm:vit_tiny_patch16_224(img_size=16, patch_size=4, embed_dim=16, depth=4, num_heads=2)",
    "images": 576,
    "test_images": 256,
    "image_size": 16,
    "epochs": 8,
    "batch_size": 64,
    "seeds": 1,
    "warmup_epochs": 1,
}

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--first_seed", type=int)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    if not options.toy and options.data is None:
        parser.error("--data FOLDER, or --toy")
    recipe = yaml.safe_load(CONFIG.read_text()) | (TOY | {"output": "runs/autoprog_scoring_toy"} if options.toy else {})
    recipe |= {key: value for key, value in vars(options).items() if value is not None and key != "toy"}
    recipe["output"] = str(recipe["output"])
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(recipe, file)
        code = morphogen(["compare", "--config", file.name])
    if code:
        raise SystemExit(code)
    config = CompareConfig(**(recipe | {"output": Path(recipe["output"])}))
    wanted = [*config.all_seeds]
    compared = [r for r in json.loads((config.output / "results.json").read_text()) if r["seed"] in wanted]
    records = at_equal_time(config, compared)
    text = as_markdown(rows(records, config.methods)) + "\n\n" + as_markdown(found(compared))
    (config.output / "equal_time.md").write_text(text + "\n")
    print(text)


def at_equal_time(config: CompareConfig, compared: list[Record]) -> dict[str, dict[int, Record]]:
    """For each method and seed the run that took the reference's time; trains those that there are not yet."""
    path = config.output / "equal_time.jsonl"
    kept = {
        (r["method"], r["seed"]): r for r in map(json.loads, path.read_text().splitlines() if path.exists() else [])
    }
    data = load_data(config)
    own = {(r["method"], r["seed"]): r for r in compared}
    records: dict[str, dict[int, Record]] = {label: {} for label in ("Dense", *config.methods)}
    for seed in config.all_seeds:
        seconds = own[REFERENCE, seed]["training_seconds"]
        for label, of_seeds in records.items():
            run, name = own[label, seed], in_time_of(REFERENCE).replace("Dense", label, 1)
            known = kept.get((name, seed)) or (own.get((name, seed)) if label == "Dense" else None)
            if abs(run["training_seconds"] / seconds - 1) < CLOSE:
                known = run
            if known is None:
                steps = max(1, round(config.epochs * data.steps * seconds / run["training_seconds"]))
                known = train(config, data, label, name, seed, steps)
                with open(path, "a") as file:
                    file.write(json.dumps(known) + "\n")
            of_seeds[seed] = known
    return records


def train(config: CompareConfig, data: Any, label: str, name: str, seed: int, steps: int) -> Record:
    """A complete run of so many steps."""
    epochs = -(-steps // data.steps)
    longer = replace(config, epochs=max(epochs, config.epochs))
    run = Run(longer, data, build_method(label), name, seed, steps)
    for epoch in run.epochs():
        print(f"{name}, seed {seed}, epoch {epoch.epoch + 1} of {run.total_epochs}, {epoch.accuracy:.2f} %", flush=True)
    recipe = {**asdict(longer), "data": data.name, "output": None}
    return {**run.ledger.record(), "recipe": recipe, "environment": environment(run.device)}


def rows(records: dict[str, dict[int, Record]], methods: list[str]) -> list[dict[str, str]]:
    """One row a method."""
    prog = records["Prog"]
    return [
        {
            "at the time of AutoProg": label,
            "top-1 %": spread([run["accuracy"] for run in of_seeds.values()]),
            "above Prog": spread([run["accuracy"] - prog[seed]["accuracy"] for seed, run in of_seeds.items()]),
            "seconds": f"{statistics.fmean(run['training_seconds'] for run in of_seeds.values()):.0f}",
            "searching %": f"{100 * share_of_search(list(of_seeds.values())):.1f}",
        }
        for label, of_seeds in ((label, records[label]) for label in ("Dense", *methods))
    ]


def share_of_search(runs: list[Record]) -> float:
    """Of the training time."""
    return statistics.fmean(run["seconds"]["search"] / run["training_seconds"] for run in runs)


def found(compared: list[Record]) -> list[dict[str, str]]:
    """What every search chose: blocks at a side."""
    return [
        {
            "method": run["method"],
            "seed": str(run["seed"]),
            "found": ", ".join(
                f"{c['blocks']} at {c['resolution'][0]}"
                for search in run["searches"]
                for c in [search["candidates"][search["chosen"]]]
            ),
            "exponents": ", ".join(f"{search['exponent']:.3f}" for search in run["searches"]),
        }
        for run in compared
        if run["searches"]
    ]


def spread(values: list[float]) -> str:
    """Mean and its standard error."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{error}"


if __name__ == "__main__":
    main()

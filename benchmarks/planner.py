"""What the planner predicts against what training then takes: six method and model pairs on CIFAR-10 images.

    python benchmarks/planner.py --data FOLDER [--seconds 20] [--clock process]

FOLDER holds train/CLASS/IMAGE and test/CLASS/IMAGE. Each model is planned with each method, then trained densely and
with every method, one short epoch each in turn. Times are the ledger's: steps, data, tracing and morphs, without
evaluation, and so are the predictions. `measured` is the ledger's own speedup. Where others use the machine, a busy
minute in the first epochs counts for more of the dense run than of a method that is still small; `paired` therefore
takes each epoch's steps by those of the dense epoch beside it, and adds tracing and morphs. `--clock process` counts
the process's own seconds on the processor, in the plans and in training: with one thread the same as wall time where
nothing else runs, and still right where something does. Takes about ten minutes on one core. Appends a line to
benchmarks/results/planner/runs.jsonl for each pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch

import morphogen
from morphogen.methods import build_method
from morphogen.report.ledger import environment
from morphogen.train.compare import speedups
from morphogen.train.config import PlanConfig
from morphogen.train.loop import Run
from morphogen.train.models import build_model
from morphogen.train.planning import plan_recipe
from morphogen.train.sources import load_data

STUDIES = [
    (
        PlanConfig(model="resnet14(width=32)", epochs=18, batch_size=64),
        320,
        [
            "NetworkExpansion(width=0.5, stages=3, multiple_of=16)",
            "NetworkExpansion(depth=0.5, stages=2)",
            "ProgressiveResizing(stages=3)",
        ],
    ),
    (
        PlanConfig(
            model="timm:vit_tiny_patch16_224(img_size=32, patch_size=4, embed_dim=64, depth=8, num_heads=2)",
            epochs=24,
            batch_size=64,
            optimizer="adamw",
            lr=1e-3,
        ),
        1024,
        ["NetworkExpansion(depth=0.5, stages=2)", "Prog", "ProgressiveResizing"],
    ),
]
"""Recipe, number of training images, methods."""


def part_of(folder: Path, images: int, into: Path) -> str:
    """An image folder with so many of the training images, as links, and a few test images."""
    for name, count in (("train", images), ("test", 100)):
        for kind in sorted((folder / name).iterdir()):
            (into / name / kind.name).mkdir(parents=True)
        kinds = [sorted(kind.iterdir()) for kind in sorted((folder / name).iterdir())]
        for image in [image for images in zip_longest(*kinds) for image in images if image][:count]:
            (into / name / image.parent.name / image.name).symlink_to(image.resolve())
    return str(into)


def steps_of(run: Run) -> float:
    """Seconds of all steps and their batches so far."""
    return run.ledger.seconds["step"] + run.ledger.seconds["data"]


def overhead_of(run: Run) -> float:
    """Seconds of tracing and morphs."""
    return run.ledger.seconds["trace"] + run.ledger.seconds["morph"]


def study(recipe: PlanConfig, methods: list[str]) -> list[dict]:
    """Plan and train; one record a method."""
    data = load_data(recipe)
    plans = {method: plan_recipe(replace(recipe, method=method)) for method in methods}
    runs = {name: Run(recipe, data, build_method(name), name, seed=0) for name in ["Dense", *methods]}
    epochs: dict[str, list[float]] = {name: [] for name in runs}
    for _ in zip(*(run.epochs() for run in runs.values()), strict=True):
        for name, run in runs.items():
            epochs[name].append(steps_of(run) - sum(epochs[name]))
    dense = runs["Dense"]
    records = []
    for method, plan in plans.items():
        run, predicted = runs[method], plan.runs[0].prediction
        measured = speedups(run.ledger.record(), dense.ledger.record())
        usual = statistics.median(epochs["Dense"])
        beside = [usual * ours / theirs for ours, theirs in zip(epochs[method], epochs["Dense"], strict=True)]
        paired = (usual * recipe.epochs + overhead_of(dense)) / (sum(beside) + overhead_of(run))
        records.append(
            {
                "model": recipe.model,
                "method": method,
                "predicted": predicted.speedup,
                "measured": measured["speedup"],
                "paired": paired,
                "flop_speedup": measured["flop_speedup"],
                "predicted_seconds": predicted.seconds,
                "measured_seconds": run.ledger.training_seconds,
                "predicted_dense_seconds": predicted.dense_seconds,
                "measured_dense_seconds": dense.ledger.training_seconds,
                "predicted_overhead": predicted.overhead,
                "measured_overhead": overhead_of(run),
                "planning": recipe.seconds,
                "epochs": recipe.epochs,
                "images": data.images,
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure for, each plan")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall")
    options = parser.parse_args()
    if options.clock == "process":
        time.perf_counter = time.process_time
    morphogen.trace(build_model("resnet8(width=8)", 10), torch.zeros(2, 3, 16, 16))  # loads what tracing needs
    path = Path(__file__).parent / "results" / "planner" / "runs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    for recipe, images, methods in STUDIES:
        with tempfile.TemporaryDirectory() as folder:
            data = part_of(options.data, images, Path(folder))
            records = study(replace(recipe, data=data, seconds=options.seconds), methods)
        with open(path, "a") as file:
            for record in records:
                file.write(
                    json.dumps(record | {"clock": options.clock, "environment": environment(torch.device("cpu"))})
                    + "\n"
                )
                figures = ", ".join(f"{name} {record[name]:.3f}x" for name in ("predicted", "measured", "paired"))
                print(f"{record['method']:>55}: {figures}", flush=True)


if __name__ == "__main__":
    main()

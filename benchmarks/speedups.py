"""The ordinary speed-ups, each apart and all at once, for dense training and for growing.

    python benchmarks/speedups.py [--model "resnet8(width=64)"] [--data digits] [--batch_size 128] [--steps 8]

All runs of one process, an epoch of each in turn, so that a noisy machine hits all alike; nothing else should run. Step
times are without what is compiled in the first step of each size, which stands beside them, with the number of graphs
that were compiled: one for each size, where the model is one graph. What was compiled for one run, another of the same
sizes and switches takes over, so the dense run, which comes first, compiles the last stage of the growing one.

Appends a record for each run to benchmarks/results/speedups/runs.jsonl, and prints them as a table. Minutes on 2 cores
for the model above, most of them compiling.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from morphogen.machine.private import compilations
from morphogen.methods import build_method
from morphogen.report.ledger import Epoch, environment
from morphogen.report.render import as_table
from morphogen.train.loop import Run
from morphogen.train.recipe import Recipe
from morphogen.train.sources import load_data

SWITCHES: dict[str, dict[str, Any]] = {
    "none": {"channels_last": False},
    "channels_last": {},
    "bfloat16": {"channels_last": False, "precision": "bfloat16"},
    "fused": {"channels_last": False, "fused": True},
    "compile": {"channels_last": False, "compile": True},
    "fast (all)": {"fast": True},
}
ON_A_GPU: dict[str, dict[str, Any]] = {
    "float16": {"channels_last": False, "precision": "float16"},
    "compile, CUDA graphs": {"channels_last": False, "compile": True, "cuda_graphs": True},
}
FOLDER = Path(__file__).parent / "results" / "speedups"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8(width=64)")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--method", default="NetworkExpansion(stages=3, multiple_of=16)")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8, help="in an epoch")
    options = parser.parse_args()
    switches = SWITCHES | (ON_A_GPU if torch.cuda.is_available() else {})
    runs: list[tuple[str, Run, Iterator[Epoch]]] = []
    for name, settings in switches.items():
        recipe = Recipe(
            options.model,
            options.data,
            epochs=options.epochs,
            batch_size=options.batch_size,
            images=options.steps * options.batch_size,
            test_images=options.batch_size,
            **settings,
        )
        data = load_data(recipe)
        for method in ("Dense", options.method):
            run = Run(recipe, data, build_method(method), method, 0)
            runs.append((name, run, run.epochs()))
    graphs = [0] * len(runs)
    for _ in range(options.epochs):
        for number, (_, _, epochs) in enumerate(runs):
            before = compilations()
            next(epochs)
            graphs[number] += compilations() - before
    rows = [record(name, run, count) for (name, run, _), count in zip(runs, graphs, strict=True)]
    first = rows[0]["step_seconds"]
    for dense, growing in zip(rows[::2], rows[1::2], strict=True):
        speedup = dense["step_seconds"] / growing["step_seconds"]
        growing["speedup"] = speedup
        if dense["flops"] != growing["flops"]:
            growing["realised"] = (speedup - 1) / (dense["flops"] / growing["flops"] - 1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "runs.jsonl", "a") as file:
        for row in rows:
            row |= {"settings": vars(options), "environment": environment(torch.device(row["device"]))}
            file.write(json.dumps(row) + "\n")
    table = [
        {
            "switched on": row["switches"],
            "method": row["method"],
            "steps s": f"{row['step_seconds']:.2f}",
            "of plain dense": f"{first / row['step_seconds']:.2f}x",
            "of dense": f"{row['speedup']:.2f}x" if "speedup" in row else "",
            "realised": f"{row['realised']:.2f}" if "realised" in row else "",
            "compiling s": f"{row['compile_seconds']:.1f}",
            "graphs": f"{row['graphs']}",
            "sizes": f"{row['sizes']}",
        }
        for row in rows
    ]
    Console(width=140).print(as_table(table))


def record(switches: str, run: Run, graphs: int) -> dict[str, Any]:
    """Figures of one run."""
    ledger = run.ledger
    return {
        "switches": switches,
        "method": ledger.method,
        "step_seconds": ledger.seconds["step"],
        "compile_seconds": ledger.seconds["compile"],
        "seconds": ledger.seconds,
        "graphs": graphs,
        "sizes": len({subnetwork for _, subnetwork in run.attached.history}),
        "flops": ledger.flops,
        "accuracy": ledger.accuracy,
        "device": str(run.device),
    }


if __name__ == "__main__":
    main()

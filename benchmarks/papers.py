"""The papers' tables, small: order of methods against the paper's. Hours of one CPU core; run again, it goes on.

python benchmarks/papers.py --data FOLDER       # CIFAR-10 as an image folder, or cifar10:FOLDER
"""

import argparse
from pathlib import Path

import torch

from morphogen.cli import main

RESULTS = Path(__file__).parent / "results" / "papers"
SMALL_IMAGES = ["--images", "2000", "--batch_size", "64", "--precision", "float32"]
"""ImageNet's recipes are still too large for a CPU at any share of its images."""

TABLES = {
    "network-expansion/6": ["--scale", "0.05"],
    "network-expansion/4": ["--scale", "0.05"],
    "prunetrain/1": ["--scale", "0.05"],
    "network-expansion/1": ["--scale", "0.05"],
    "autoprog/8": ["--scale", "0.005", *SMALL_IMAGES],
    "autoprog/4": ["--scale", "0.005", *SMALL_IMAGES],
    "autoprog/2": ["--scale", "0.005", *SMALL_IMAGES],
}


def run() -> None:
    """Each table in a folder of its own; one that fails does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables", nargs="*", default=[*TABLES])
    parser.add_argument("--scale", help="of the tables on CIFAR; 0.05 by default, an hour of one core each")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for table in asked.tables:
        output = asked.output / table.replace("/", "_")
        settings = ["--scale", asked.scale] if asked.scale and len(TABLES[table]) == 2 else TABLES[table]
        code = main(["compare", "--table", table, "--data", asked.data, "--output", str(output), *settings])
        if code > 2:  # stopped
            raise SystemExit(code)


if __name__ == "__main__":
    run()

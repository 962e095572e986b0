"""Fine-tuning: a network trained on the first half of the classes of an image folder, then on the others.

    python benchmarks/fine_tuning.py --data FOLDER [--seeds 3] [--work runs/fine_tuning] [--output FOLDER]

FOLDER has train/CLASS and test/CLASS (CIFAR-10 as JPEG). The first network is trained once, into the work folder. Then
`fine_tuning.yaml` (methods, complete runs of several lengths) and `fine_tuning_ablation.yaml` (how channels are chosen,
and what fills them when they come back) are compared, seed by seed; finished runs are kept, so that it goes on where it
was stopped. Half an hour of one core, all of it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from morphogen.cli import main as morphogen

HERE = Path(__file__).parent
FIRST = (
    "--model resnet8(width=16) --epochs 4 --batch_size 128 --lr 0.1 --lr_schedule wsd --warmup_epochs 1 "
    "--precision bfloat16 --method Dense --resume true"
).split()


def split(data: Path, work: Path) -> tuple[Path, Path]:
    """Two image folders, of the first half of the classes and of the second, by links."""
    classes = sorted(path.name for path in (data / "train").iterdir() if path.is_dir())
    halves = {"first": classes[: len(classes) // 2], "rest": classes[len(classes) // 2 :]}
    for half, names in halves.items():
        for name in names:
            for part in ("train", "test"):
                link = work / half / part / name
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    os.symlink((data / part / name).resolve(), link, target_is_directory=True)
    return work / "first", work / "rest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "fine_tuning")
    options = parser.parse_args()
    first, rest = split(options.data, options.work)
    weights = str(options.work / "network" / "model.pt")
    train = ["train", *FIRST, "--data", str(first), "--output", str(options.work / "network")]
    commands = [] if Path(weights).exists() else [train]
    for seeds in range(1, options.seeds + 1):
        for name, folder in (("fine_tuning", ""), ("fine_tuning_ablation", "ablation")):
            output = options.output / folder
            settings = ["--config", str(HERE / f"{name}.yaml"), "--data", str(rest), "--pretrained", weights]
            commands.append(["compare", *settings, "--seeds", str(seeds), "--output", str(output)])
    for command in commands:
        if code := morphogen(command):
            raise SystemExit(code)


if __name__ == "__main__":
    main()

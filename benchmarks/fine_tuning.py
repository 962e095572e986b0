"""Fine-tuning: a network trained on the first half of the classes of an image folder, then on the others.

    python benchmarks/fine_tuning.py --data FOLDER [--seeds 3] [--studies fine_tuning ...] [--work runs/fine_tuning]
                                     [--output FOLDER]

FOLDER has train/CLASS and test/CLASS (CIFAR-10 as JPEG). The first networks are trained once, into the work folder.
Then `fine_tuning.yaml` (methods, complete runs of several lengths), `fine_tuning_ablation.yaml` (how channels are
chosen, and what fills them when they come back) and `fine_tuning_vit.yaml` (unfreezing, given and searched) are
compared, seed by seed; finished runs are kept, so that it goes on where it was stopped. Three quarters of an hour of
one core, all of it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from morphogen.cli import main as morphogen

HERE = Path(__file__).parent
FIRST = {
    "network": "--model resnet8(width=16) --epochs 4 --batch_size 128 --lr 0.1 --precision bfloat16",
    "vit": "--model timm:vit_tiny_patch16_224(img_size=24,patch_size=4,embed_dim=64,depth=6,num_heads=2) "
    "--image_size 24 --images 10000 --epochs 6 --batch_size 64 --optimizer adamw --lr 0.001 --weight_decay 0.05",
}
"""The networks that are fine-tuned."""

STUDIES = {
    "fine_tuning": ("network", ""),
    "fine_tuning_ablation": ("network", "ablation"),
    "fine_tuning_vit": ("vit", "vit"),
}
"""For each study its network, and the folder that its results go to."""


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
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=[*STUDIES])
    options = parser.parse_args()
    first, rest = split(options.data, options.work)
    weights = {name: options.work / name / "model.pt" for name in FIRST}
    commands = []
    for name in dict.fromkeys(STUDIES[study][0] for study in options.studies):
        if not weights[name].exists():
            settings = f"{FIRST[name]} --lr_schedule wsd --warmup_epochs 1 --method Dense --resume true".split()
            commands.append(["train", *settings, "--data", str(first), "--output", str(options.work / name)])
    for seeds in range(1, options.seeds + 1):
        for study in options.studies:
            name, folder = STUDIES[study]
            settings = [
                "--config",
                str(HERE / f"{study}.yaml"),
                "--data",
                str(rest),
                "--pretrained",
                str(weights[name]),
            ]
            commands.append(["compare", *settings, "--seeds", str(seeds), "--output", str(options.output / folder)])
    for command in commands:
        if code := morphogen(command):
            raise SystemExit(code)


if __name__ == "__main__":
    main()

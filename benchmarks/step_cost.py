"""What a small sub-network costs beside a network built at that size, the momentum network beside a step, and the
loader beside training.

    python benchmarks/step_cost.py [--rounds 15]

Steps are interleaved, their medians compared; nothing else should run. Appends a record to
benchmarks/results/step_cost.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from torch import nn
from torchvision.io import write_jpeg

import morphogen
from morphogen.report.ledger import environment
from morphogen.train.data import loader_throughput
from morphogen.train.recipe import Recipe
from morphogen.train.sources import load_data

SMALL = {
    # dense model, the same at half the depth (built natively), image side
    "deit_tiny_patch16_224": ("vit_tiny_patch16_224", {"depth": 6, "img_size": 112}, 112, 16),
    "convnext_atto": ("convnext_atto", {"depths": (1, 1, 3, 1)}, 112, 16),
    "resnet50": ("resnet50", {"layers": (2, 3, 4, 2)}, 112, 16),
}
"""Dense model: (a model built small, its arguments, image side, batch size). The small ones have the blocks that
`net.subnetwork(depth=0.5)` keeps."""


class Step:
    """A training step of a model on random images."""

    def __init__(self, model: nn.Module, side: int, batch: int):
        self.model, self.images = model.train(), torch.randn(batch, 3, side, side)
        self.labels = torch.randint(10, (batch,))
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def __call__(self) -> float:
        """Seconds."""
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return time.perf_counter() - start


def interleaved(steps: list, rounds: int) -> list[float]:
    """Median seconds of each, taken in turns (after one round to warm up)."""
    times = [[step() for step in steps] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def shallow_and_small(name: str, rounds: int) -> dict[str, float]:
    """Step time of a sub-network by that of a network built at its size."""
    native_name, arguments, side, batch = SMALL[name]
    model = timm.create_model(name, num_classes=10)
    net = morphogen.trace(model, torch.zeros(2, 3, 224, 224))
    morphogen.morph(net, net.subnetwork(depth=0.5, resolution=side))
    native = timm.create_model(native_name, num_classes=10, **arguments)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, native)]
    assert sizes[0] == sizes[1], (name, sizes)
    ours, built = interleaved([Step(model, side, batch), Step(native, side, batch)], rounds)
    return {f"{name}, step ms": 1000 * ours, f"{name}, of native": ours / built}


def momentum(rounds: int) -> dict[str, float]:
    """Time of one update of the momentum network by that of a step: DeiT-Ti at 224 pixels."""
    model = timm.create_model("deit_tiny_patch16_224", num_classes=10)
    network = morphogen.MomentumNetwork(model, 0.998)

    def update() -> float:
        start = time.perf_counter()
        network.update_parameters(model)
        return time.perf_counter() - start

    step, average = interleaved([Step(model, 224, 16), update], rounds)
    return {"momentum update ms": 1000 * average, "momentum, of a step": average / step}


def loader(rounds: int) -> list[dict[str, float]]:
    """Images a second of the loader alone and of training (DeiT-Ti) at each stage of Prog; JPEGs of 400 x 300."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(512):
            path = Path(folder) / ("train" if i < 448 else "val") / str(i % 2)
            path.mkdir(parents=True, exist_ok=True)
            smooth = nn.functional.interpolate(torch.rand(1, 3, 30, 40), (300, 400), mode="bicubic")[0]
            write_jpeg((smooth.clamp(0, 1) * 255).to(torch.uint8), str(path / f"{i}.jpg"), quality=90)
        data = load_data(Recipe(data=folder, batch_size=16, workers=1, image_size=224))
        model = timm.create_model("deit_tiny_patch16_224", num_classes=2)
        net = morphogen.trace(model, torch.zeros(2, 3, 224, 224))
        rows = []
        for stage in morphogen.Prog(depth_operator="interpolate").schedule(net, 4):
            morphogen.morph(net, stage.subnetwork)
            side = stage.subnetwork.resolution[0]
            step = Step(model, side, 16)
            step.labels %= 2
            (seconds,) = interleaved([step], max(3, rounds // 3))
            images = loader_throughput(data, stage.subnetwork.resolution, 24)
            rows.append({"side": side, "loader images/s": images, "training images/s": 16 / seconds})
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    record: dict = {}
    for name in SMALL:
        record |= shallow_and_small(name, options.rounds)
    record |= momentum(options.rounds)
    record |= {"loader": loader(options.rounds), "rounds": options.rounds}
    record["environment"] = environment(torch.device("cpu"))
    for key, value in record.items():
        print(f"{key:>36}: {value:.3f}" if isinstance(value, float) else f"{key:>36}: {value}")
    with open(Path(__file__).parent / "results" / "step_cost.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

"""Accuracy against time on all of CIFAR-10: growth of width and resolution beside dense runs of several lengths."""

from __future__ import annotations

import itertools
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg

import morphogen
from morphogen.cost.flops import cost
from morphogen.train.cifar_resnet import CIFAR_RESNETS

from .common import need, train_epoch
from .harness import Bench, check

EPOCHS, BATCH, WIDTH = 12, 1024, 64
LR, WEIGHT_DECAY = 0.4, 5e-4
WARMUP, DECAY = 0.1, 0.35
"""Shares of a run: the learning rate rises, stays, and falls to 0; growth ends in the flat part."""

METHODS: dict[str, Callable[[], morphogen.Method]] = {
    "Dense": morphogen.Dense,
    "width, quiet": lambda: morphogen.NetworkExpansion(width=0.5, stages=2, multiple_of=8, operator="quiet"),
    "width, orthogonal": lambda: morphogen.NetworkExpansion(width=0.5, stages=2, multiple_of=8),
    "resolution": lambda: morphogen.ProgressiveResizing(ratio=0.625, stages=2),
    "width, quiet, and resolution": lambda: (
        morphogen.NetworkExpansion(width=0.5, stages=2, multiple_of=8, operator="quiet")
        + morphogen.ProgressiveResizing(ratio=0.625, stages=2)
    ),
}
LENGTHS = {"Dense": (1.0, 0.75, 0.5)}
GROWING_LENGTHS = (1.0,)
"""Of methods that grow, whose epochs are cheaper."""


@dataclass
class Images:
    """CIFAR-10 on the device: bytes, and classes."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor

    def to(self, device: torch.device) -> Images:
        """All of it there."""
        return Images(*(tensor.to(device) for tensor in vars(self).values()))


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the JPEG files of a folder, or of a tar file of one."""
    if path.is_dir():
        for file in sorted(path.glob("*/*/*.jpg")):
            yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() and member.name.endswith(".jpg") else None
            if content is not None:
                yield member.name, content.read()


def load(path: Path) -> Images:
    """Images from a folder or tar file of `train/CLASS/NAME.jpg` and `test/CLASS/NAME.jpg`, or a file of `prepare`."""
    if path.suffix == ".pt":
        return Images(**torch.load(path, weights_only=True))
    parts: dict[str, list[tuple[torch.Tensor, str]]] = {"train": [], "test": []}
    for name, content in _files(path):
        part, label = name.split("/")[-3:-1]
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        parts[part].append((decode_jpeg(encoded, ImageReadMode.RGB), label))
    classes = sorted({label for _, label in parts["train"]})
    tensors = []
    for pairs in parts.values():
        tensors += [torch.stack([image for image, _ in pairs]), torch.tensor([classes.index(at) for _, at in pairs])]
    return Images(*tensors)


def prepare(source: Path, target: Path) -> None:
    """Decode once, into a file that is read in a second."""
    images = load(source)
    torch.save(vars(images), target)
    print(f"{len(images.train)} training and {len(images.test)} test images in {target}")


def made_up(seed: int) -> Images:
    """A few images of noise around ten patterns, for a toy run."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(256, (10, 3, 32, 32), generator=generator)

    def some(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % 10
        noise = torch.randint(256, (count, 3, 32, 32), generator=generator)
        return (patterns[labels] + noise).div(2).to(torch.uint8), labels

    return Images(*some(64), *some(20))


class Loader:
    """Shuffled, cropped and flipped on the device, a batch at a time."""

    def __init__(self, images: Images, batch: int, seed: int):
        self.images, self.batch, self.device = images, batch, images.train.device
        scaled = images.train[:10_000].float().div(255)
        self.mean = scaled.mean((0, 2, 3)).view(3, 1, 1)
        self.std = scaled.std((0, 2, 3)).view(3, 1, 1)
        self.padded = F.pad(images.train, (4,) * 4)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.steps = len(images.train) // batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.padded), device=self.device, generator=self.generator)
        place = torch.arange(32, device=self.device)
        for chosen in order[: self.steps * self.batch].split(self.batch):
            top, left, flip = (
                torch.randint(most, (self.batch, 1), device=self.device, generator=self.generator) for most in (9, 9, 2)
            )
            rows, columns = top + place, left + torch.where(flip == 1, 31 - place, place)
            index = (rows[:, :, None] * 40 + columns[:, None, :]).view(self.batch, 1, -1).expand(-1, 3, -1)
            images = self.padded[chosen].flatten(2).gather(2, index).view(-1, 3, 32, 32)
            yield self.normalised(images), self.images.train_labels[chosen]

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """As the network wants them."""
        scaled = images.float().div_(255).sub_(self.mean).div_(self.std)
        return scaled.contiguous(memory_format=torch.channels_last)


def rate(done: float) -> float:
    """The learning rate's share at a share of the run: up, flat, down to 0."""
    return max(0.001, min(done / WARMUP, 1.0, (1 - done) / DECAY))


def accuracy(model: nn.Module, loader: Loader) -> float:
    """Percent of the test images."""
    model.eval()
    right = 0
    with torch.inference_mode(), torch.autocast(loader.device.type, torch.bfloat16):
        pairs = zip(loader.images.test.split(1000), loader.images.test_labels.split(1000), strict=True)
        for images, labels in pairs:
            right += int((model(loader.normalised(images)).argmax(1) == labels).sum())
    return 100 * right / len(loader.images.test)


def one_run(bench: Bench, images: Images, name: str, epochs: int, seed: int) -> dict[str, Any]:
    """Train once; seconds are those of training end to end, with trace and morphs."""
    torch.manual_seed(seed)
    width, batch = bench.pick((WIDTH, BATCH), (8, 16))
    loader = Loader(images, batch, seed)
    bench.synchronize()
    begin = time.perf_counter()
    model = CIFAR_RESNETS["resnet14"](width=width).to(bench.device).to(memory_format=torch.channels_last).train()
    settings = {"momentum": 0.9, "nesterov": True, "weight_decay": WEIGHT_DECAY}
    optimizer = torch.optim.SGD(model.parameters(), LR, fused=True, **settings)
    example = torch.zeros(batch, 3, 32, 32, device=bench.device)
    run = morphogen.attach(model, optimizer, METHODS[name](), example=example, epochs=epochs)
    attached = time.perf_counter() - begin
    total, means, trained = epochs * loader.steps, [], {}

    for epoch in range(epochs):

        def before(step: int, at: int = epoch) -> None:
            for group in optimizer.param_groups:
                group["lr"] = LR * rate((at * loader.steps + step + 1) / total)

        losses = train_epoch(run, optimizer, loader, epoch, before=before)
        means.append(torch.stack(losses).mean())
        trained[run.network.current] = trained.get(run.network.current, 0) + loader.steps
    run.end()
    bench.synchronize()
    seconds = time.perf_counter() - begin
    flops = sum(steps * cost(run.network, part, batch).training for part, steps in trained.items())
    each = [round(loss, 4) for loss in torch.stack(means).tolist()]
    figures = {"method": name, "epochs": epochs, "seed": seed, "accuracy": accuracy(model, loader), "seconds": seconds}
    return figures | {"attach s": attached, "PFLOP": flops / 1e15, "loss": each[-1], "losses": each}


def _plan(epochs: int) -> list[tuple[str, int]]:
    """Methods and epochs of one seed, the full-length runs first."""
    each = [[(name, length) for length in LENGTHS.get(name, GROWING_LENGTHS)] for name in METHODS]
    turns = itertools.zip_longest(*each)
    return [(name, max(2, round(length * epochs))) for turn in turns for name, length in filter(None, turn)]


def summary(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["epochs"]), []).append(run)
    rows = []
    for (method, epochs), same in sorted(groups.items()):
        means = {key: sum(run[key] for run in same) / len(same) for key in ("accuracy", "seconds", "PFLOP")}
        spread = torch.tensor([run["accuracy"] for run in same]).std().item() if len(same) > 1 else None
        rows.append({"method": method, "epochs": epochs, "seeds": len(same), **means, "std": spread})
    return rows


@check("CIFAR-10 study", 3600, turn=6, least=20, repeats=True)
def study(bench: Bench) -> dict[str, Any]:
    """Runs that are not there yet, seed after seed, until the time is up."""
    need(bench.toy or bench.data is not None, "no --data")
    images = (made_up(bench.seed) if bench.data is None else load(bench.data)).to(bench.device)
    earlier = [
        row["figures"]["run"]
        for row in bench.results.rows()
        if row.get("check") == "CIFAR-10 study"
        and "run" in (row.get("figures") or {})
        and (row["status"], row["commit"], row["device"], row["toy"])
        == ("part", bench.results.commit, bench.kind, bench.toy)
    ]
    runs = [run for run in earlier if run["of"] == EPOCHS] if not bench.toy else []
    done = {(run["method"], run["epochs"], run["seed"]) for run in runs}
    torch.backends.cudnn.benchmark = True
    try:
        plan = _plan(bench.pick(EPOCHS, 2))
        if any((*each, bench.seed) not in done for each in plan):
            # Every kernel has been chosen before the clock counts.
            one_run(bench, images, "width, quiet, and resolution", 2, seed=-1)
        slowest = max((run["seconds"] / run["epochs"] for run in runs), default=0.0)
        for seed in itertools.count(bench.seed):
            for name, epochs in plan:
                if (name, epochs, seed) in done:
                    continue
                if bench.left() < 4 + 1.1 * slowest * epochs or (bench.toy and runs and name == "Dense"):
                    return {"runs": len(runs), "results": summary(runs)}
                runs.append({**one_run(bench, images, name, epochs, seed), "of": EPOCHS})
                slowest = max(slowest, runs[-1]["seconds"] / epochs)
                bench.note(run=runs[-1])
                print(f"           {runs[-1]}", flush=True)
    finally:
        torch.backends.cudnn.benchmark = False
        bench.figures.pop("run", None)
    raise AssertionError("seeds do not end")

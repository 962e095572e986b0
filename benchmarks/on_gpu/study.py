"""Speed at equal accuracy on CIFAR-10: complete runs of several lengths, dense and growing, a step being a CUDA graph.

Both kinds get the same: data in the device's memory, bfloat16, channels-last, fused updates, forward and backward pass
captured once a size. Seconds are of training end to end, with trace, morphs and captures.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

import morphogen
from morphogen.cost.flops import cost
from morphogen.report.fronts import Point, speedups_at_equal_accuracy
from morphogen.schedule.learning_rate import share_of_peak, wsd
from morphogen.train.cifar_resnet import CIFAR_RESNETS

from .cifar import Images, Loader, accuracy, load, made_up
from .common import need
from .harness import Bench, check

WARM_STEPS = 3
"""Steps without a graph in every new size: kernels are chosen and memory is found."""


@dataclass(frozen=True)
class Case:
    """A network and how it is trained.

    Attributes:
        build: the model, from its width.
        optimizer: from its parameters and the learning rate.
        lr: peak learning rate, the best for dense of a small grid.
        epochs: of a run of full length.
        images: for training.
        batch: images in a step.
        width: given to `build`; a smaller one for a toy run.
        methods: by name, with the lengths of their runs as shares of `epochs`; `Dense` is the baseline.
    """

    build: Callable[[int], nn.Module]
    optimizer: Callable[[Any, float], Optimizer]
    lr: float
    epochs: int
    images: int
    batch: int
    width: tuple[int, int]
    methods: dict[str, tuple[Callable[[], morphogen.Method], tuple[float, ...]]]


def _vit(width: int) -> nn.Module:
    shape = {"img_size": 32, "patch_size": 4, "embed_dim": width, "depth": 8, "num_heads": 2, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **shape)


CASES = {
    "ResNet-8": Case(
        lambda width: CIFAR_RESNETS["resnet8"](width=width),
        lambda parameters, lr: torch.optim.SGD(
            parameters, lr, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
        ),
        lr=0.4,
        epochs=40,
        images=25_000,
        batch=512,
        width=(64, 8),
        methods={
            "Dense": (morphogen.Dense, (1.0, 0.75, 0.5)),
            "GrowOnce": (morphogen.GrowOnce, (1.5, 1.0)),
            "GrowOnce(resolution=0.625)": (lambda: morphogen.GrowOnce(resolution=0.625), (1.0,)),
        },
    ),
    "ViT": Case(
        _vit,
        lambda parameters, lr: torch.optim.AdamW(parameters, lr, weight_decay=0.05, fused=True),
        lr=2e-3,
        epochs=40,
        images=25_000,
        batch=512,
        width=(64, 16),
        methods={
            "Dense": (morphogen.Dense, (1.0, 0.75, 0.5)),
            "GrowOnce": (morphogen.GrowOnce, (1.5, 1.0)),
            "GrowOnce(resolution=0.625, depth=0.25)": (
                lambda: morphogen.GrowOnce(resolution=0.625, depth=0.25),
                (1.0,),
            ),
        },
    ),
}
"""What is studied."""


WARM_EPOCHS = 12
"""Of the run before the clock counts: enough for every size to have one."""


class Step:
    """Forward and backward pass of one size as a CUDA graph; the update is apart, since it needs a learning rate."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device):
        self.model, self.optimizer, self.device = model, optimizer, device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.seen = 0

    def _pass(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        return loss.detach()

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss; gradients are in place."""
        if self.seen < WARM_STEPS or self.device.type != "cuda":
            self.seen += 1
            self.optimizer.zero_grad()
            if self.device.type != "cuda":
                return self._pass(images, labels)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loss = self._pass(images, labels)
            torch.cuda.current_stream().wait_stream(side)
            return loss
        if self.graph is None:
            self.optimizer.zero_grad()
            self.images, self.labels, self.graph = images.clone(), labels.clone(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.loss = self._pass(self.images, self.labels)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.loss.clone()


def one_run(
    bench: Bench, case: Case, images: Images, method: morphogen.Method, epochs: int, seed: int
) -> dict[str, Any]:
    """Train once."""
    torch.manual_seed(seed)
    peak, device = case.lr, bench.device
    batch = bench.pick(case.batch, 16)
    loader = Loader(images, batch, seed)
    bench.synchronize()
    begin = time.perf_counter()
    model = case.build(bench.pick(*case.width)).to(device).to(memory_format=torch.channels_last).train()
    optimizer = case.optimizer(model.parameters(), peak)
    example = torch.zeros(batch, 3, 32, 32, device=device)
    run = morphogen.attach(
        model, optimizer, method, example=example, epochs=epochs, steps_per_epoch=loader.steps, hooks=False
    )
    attached, shape, total = time.perf_counter() - begin, wsd(), epochs * loader.steps
    means, ends, trained, step, size = [], [], {}, None, None
    for epoch in range(epochs):
        run.begin_epoch(epoch)
        if run.network.current != size:
            step, size = Step(model, optimizer, device), run.network.current
        assert step is not None
        losses = []
        for number, (batch_images, labels) in enumerate(loader):
            for group in optimizer.param_groups:
                done = epoch * loader.steps + number
                group["lr"] = peak * share_of_peak(shape, done, total, 0.1 * total)
            losses.append(step(run.begin_step(batch_images), labels))
            optimizer.step()
            run.end_step()
        means.append(torch.stack(losses).mean())
        bench.synchronize()
        ends.append(time.perf_counter() - begin)
        trained[size] = trained.get(size, 0) + loader.steps
    run.end()
    bench.synchronize()
    seconds = time.perf_counter() - begin
    flops = sum(steps * cost(run.network, part, batch).training for part, steps in trained.items())
    each = [round(loss, 4) for loss in torch.stack(means).tolist()]
    epoch_seconds = [round(end - start, 4) for start, end in itertools.pairwise([attached, *ends])]
    figures = {"epochs": epochs, "seed": seed, "lr": peak, "accuracy": accuracy(model, loader), "seconds": seconds}
    return figures | {
        "attach s": attached,
        "PFLOP": flops / 1e15,
        "loss": each[-1],
        "losses": each,
        "epoch s": epoch_seconds,
    }


def plan(case: Case) -> Iterator[tuple[str, float, int]]:
    """Methods, lengths and seeds without an end: a whole seed of all, then the next."""
    for seed in itertools.count():
        for name, (_, lengths) in case.methods.items():
            for length in lengths:
                yield name, length, seed


def headline(rows: list[dict[str, Any]]) -> list[str]:
    """What the runs say of speed at equal accuracy; in time by the steady epochs of each size, as in a long run."""
    points = [
        Point(run["method"], run["length"], run["seed"], run["accuracy"], steady(run["epoch s"]), run["PFLOP"] * 1e15)
        for run in rows
    ]
    return [f"{each.method}, {each.below:g} below, {each.cost}: {each}" for each in speedups_at_equal_accuracy(points)]


def steady(seconds: list[float]) -> float:
    """The time of all epochs without the captures and trials of a new size: each as long as the next at most."""
    return sum(map(min, seconds, [*seconds[1:], seconds[-1]]))


def study(bench: Bench, title: str) -> dict[str, Any]:
    """Runs that are not there yet, seed after seed, until the time is up."""
    need(bench.toy or bench.data is not None, "no --data")
    case, check_name = CASES[title], f"equal accuracy: {title}"
    images = (made_up(bench.seed) if bench.data is None else load(bench.data)).to(bench.device)
    images = images if bench.toy else images.first(case.images)
    rows = [
        row["figures"]["run"]
        for row in bench.results.rows()
        if row.get("check") == check_name
        and "run" in (row.get("figures") or {})
        and (row["status"], row["device"], row["toy"]) == ("part", bench.kind, bench.toy)
    ]
    rows = [run for run in rows if run["commit"] == bench.results.commit]
    done = {(run["method"], run["length"], run["seed"]) for run in rows}
    if not bench.toy:
        for name, (make, _) in case.methods.items():  # kernels are chosen, files are read, before the clock counts
            one_run(bench, case, images, make(), WARM_EPOCHS, seed=-1)
            print(f"           {name} is warm", flush=True)
    count, an_epoch, to_begin = 0, 0.0, 0.0
    try:
        for name, length, seed in plan(case):
            if (name, length, seed) in done:
                continue
            epochs = max(2, round(length * bench.pick(case.epochs, 2)))
            if bench.left() < 3 + 1.1 * (to_begin + an_epoch * epochs) or (bench.toy and seed > 0):
                return {"runs": count, "speedups": headline(rows)}
            run = one_run(bench, case, images, case.methods[name][0](), epochs, seed)
            count += 1
            an_epoch, to_begin = max(an_epoch, run["epoch s"][-1]), max(to_begin, run["attach s"])
            rows.append({"method": name, "length": length, **run, "commit": bench.results.commit})
            bench.note(run=rows[-1])
            print(f"           {name} {epochs} {seed}: {run['accuracy']:.2f} % in {run['seconds']:.2f} s", flush=True)
    finally:
        bench.figures.pop("run", None)
    raise AssertionError("seeds do not end")


@check("equal accuracy: ResNet-8", 3600, turn=6, least=20, repeats=True)
def resnet(bench: Bench) -> dict[str, Any]:
    """A CNN of basic blocks."""
    return study(bench, "ResNet-8")


@check("equal accuracy: ViT", 3600, turn=7, least=20, repeats=True)
def vit(bench: Bench) -> dict[str, Any]:
    """A vision transformer of 8 blocks."""
    return study(bench, "ViT")

"""What steps of sub-networks cost beside the dense network's, at full shape, and whether their memory was foreseen."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

import morphogen
from morphogen.cost.flops import cost
from morphogen.cost.memory import StepMemory
from morphogen.machine.private import compiling
from morphogen.train.compiled import compiled

from .common import need, peak_of
from .harness import Bench, OutOfTime, check

AUTOCAST = torch.bfloat16
RESERVE = 3.0
"""Seconds that a check has left when its last sub-network is done, were it as slow as the slowest before it."""


@dataclass(frozen=True)
class Case:
    """A network at the size of its paper.

    Attributes:
        make: the model; `make(True)` a small one of the same kind.
        side, batch: of the images; so many that the device, not the process that feeds it, sets the pace.
        optimizer: of the model.
        stages: sub-networks to measure, by name, in the order of growth.
    """

    make: Callable[[bool], nn.Module]
    side: int
    batch: int
    optimizer: Callable[[nn.Module], Optimizer]
    stages: Callable[[morphogen.Network], dict[str, morphogen.SubNetwork]]


def _sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)


def _adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-5, weight_decay=0.05, fused=True)


def _schedule(net: morphogen.Network, title: str, method: morphogen.Method) -> dict[str, morphogen.SubNetwork]:
    """The stages of a method but for the last, the dense network."""
    stages = [stage.subnetwork for stage in method.schedule(net, 20)][:-1]
    return {f"{title} {number}": subnetwork for number, subnetwork in enumerate(stages, 1)}


def _of_a_cnn(net: morphogen.Network) -> dict[str, morphogen.SubNetwork]:
    assert net.dense.resolution is not None
    side = net.dense.resolution[0]
    return {
        **_schedule(net, "width, by 8, stage", morphogen.NetworkExpansion(width=0.5, stages=5, multiple_of=8)),
        f"{side * 5 // 7} px": net.subnetwork(resolution=side * 5 // 7),
        f"{side // 2} px": net.subnetwork(resolution=side // 2),
        "half width and px": net.subnetwork(width=0.5, resolution=side // 2, multiple_of=8),
        "half depth": net.subnetwork(depth=0.5),
        "half width, by 1": net.subnetwork(width=0.55),
        **_schedule(net, "width, by 64, stage", morphogen.NetworkExpansion(width=0.5, stages=5, multiple_of=64)),
    }


def _of_a_vit(net: morphogen.Network) -> dict[str, morphogen.SubNetwork]:
    assert net.dense.resolution is not None
    side = net.dense.resolution[0]
    return {
        **_schedule(net, "Prog, stage", morphogen.Prog(stages=4)),
        "half depth": net.subnetwork(depth=0.5),
        f"{side * 5 // 7} px": net.subnetwork(resolution=side * 5 // 7),
        f"{side // 2} px": net.subnetwork(resolution=side // 2),
        "half width": net.subnetwork(width=0.5, multiple_of=8),
    }


def _resnet50(toy: bool) -> nn.Module:
    return torchvision.models.resnet18(num_classes=10) if toy else torchvision.models.resnet50()


def _deit_s(toy: bool) -> nn.Module:
    if toy:
        return timm.create_model("deit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=24, depth=4, num_heads=3)
    return timm.create_model("deit_small_patch16_224")


def _volo_d1(toy: bool) -> nn.Module:
    from timm.models.volo import VOLO

    if toy:
        return VOLO(layers=(1, 2, 3, 1), embed_dims=(12, 24, 24, 24), num_heads=(2, 2, 2, 2), img_size=64)
    return timm.create_model("volo_d1_224")


CASES = {
    "ResNet-50": Case(_resnet50, 224, 512, _sgd, _of_a_cnn),
    "DeiT-S": Case(_deit_s, 224, 1024, _adamw, _of_a_vit),
    "VOLO-D1": Case(_volo_d1, 224, 512, _adamw, _of_a_vit),
}
TOY_SIDES = {"ResNet-50": 64, "DeiT-S": 32, "VOLO-D1": 64}


class Step:
    """A training step on random images."""

    def __init__(self, bench: Bench, model: nn.Module, called: nn.Module, optimizer: Optimizer, side: int, batch: int):
        self.cuda, self.called, self.optimizer, self.parameters = bench.cuda, called, optimizer, [*model.parameters()]
        images = torch.randn(batch, 3, side, side, device=bench.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (batch,), device=bench.device)

    def __call__(self) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad()
        with torch.autocast(self.images.device.type, AUTOCAST):
            output = self.called(self.images)
            output = output[0] if isinstance(output, tuple) else output
            loss = F.cross_entropy(output, self.labels)
        loss.backward()
        self.optimizer.step()

    def timed(self) -> Callable[[], float]:
        """Take a step; what is returned gives its seconds later, without a wait now."""
        if not self.cuda:
            start = time.perf_counter()
            self()
            seconds = time.perf_counter() - start
            return lambda: seconds
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self()
        end.record()
        return lambda: begin.elapsed_time(end) / 1000

    def peak(self) -> int:
        """Bytes of a step at its peak, of this network and its optimizer alone."""
        return peak_of(self, self.parameters, self.optimizer, self.images)


def interleaved(
    bench: Bench, steps: list[Step], seconds: float, least: int = 5, most: int = 25
) -> list[tuple[float, float]]:
    """Median seconds of each, taken in turns, and the least that asking for one took; three to warm up.

    A step that takes as long as asking for it waits for the process, and a smaller one would not be faster. Asking is
    timed apart, of an idle device: a full queue of kernels makes whoever asks for another step wait for the one before.
    """
    for step in steps:
        for _ in range(bench.pick(3, 1)):
            step()
    asked = [min(_asked(bench, step) for _ in range(bench.pick(3, 1))) for step in steps]
    begin, marks = time.time(), []
    while len(marks) < bench.pick(least, 1) or (len(marks) < bench.pick(most, 1) and time.time() - begin < seconds):
        marks.append([step.timed() for step in steps])
        if len(marks) % 5 == 0:
            bench.synchronize()
    bench.synchronize()
    columns = zip(*[[read() for read in row] for row in marks], strict=True)
    return [(statistics.median(column), least_asked) for column, least_asked in zip(columns, asked, strict=True)]


def _asked(bench: Bench, step: Step) -> float:
    """Seconds that the process takes to ask an idle device for a step."""
    bench.synchronize()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    bench.synchronize()
    return seconds


def measure(bench: Bench, name: str, *, compile_them: bool = False, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every sub-network of a case beside its dense network: time, FLOPs, memory, and what the morph to it took."""
    case = CASES[name]
    if name == "VOLO-D1":
        need("volo_d1_224" in timm.list_models("volo*"), "timm has no volo_d1_224")
    side, batch = bench.pick(case.side, TOY_SIDES[name]), bench.pick(case.batch, 4)
    torch.backends.cudnn.benchmark = True
    try:
        with compiling(32 if compile_them else 0):
            return _measured(bench, case, side, batch, compile_them, only)
    finally:
        torch.backends.cudnn.benchmark = False
        if compile_them:
            torch.compiler.reset()


def _built(bench: Bench, case: Case) -> nn.Module:
    return case.make(bench.toy).to(bench.device).to(memory_format=torch.channels_last).train()


def _measured(
    bench: Bench, case: Case, side: int, batch: int, compile_them: bool, only: tuple[str, ...]
) -> dict[str, Any]:
    fixed, model = _built(bench, case), _built(bench, case)
    optimizer = case.optimizer(model)

    def stepped(which: nn.Module, its: Optimizer, size: int) -> Step:
        return Step(bench, which, compiled(which, graphs=False) if compile_them else which, its, size, batch)

    start = time.perf_counter()
    net = morphogen.trace(model, torch.zeros(2, 3, side, side, device=bench.device))
    figures: dict[str, Any] = {"batch": batch, "trace s": time.perf_counter() - start}
    bench.note(**figures)
    modelled = StepMemory(net, [optimizer], autocast=AUTOCAST)
    dense_flops, dense = cost(net, net.dense, batch).training, stepped(fixed, case.optimizer(fixed), side)
    start = time.perf_counter()
    dense()
    bench.synchronize()
    figures["first dense step s"] = time.perf_counter() - start
    figures["dense step GFLOP"] = dense_flops / 1e9
    if bench.cuda:
        dense()
        figures["dense peak MiB"] = dense.peak() / 2**20
        figures["dense peak by the model MiB"] = modelled.bytes(net.dense, batch) / 2**20
    stages = {title: target for title, target in case.stages(net).items() if not only or title.startswith(only)}
    rows: list[dict[str, Any]] = []
    longest = 30.0 if compile_them else 0.0
    for left, (title, target) in zip(range(len(stages), 0, -1), stages.items(), strict=True):
        if rows and bench.left() < RESERVE + longest:
            figures["left out"] = left
            break
        row: dict[str, Any] = {"sub-network": title}
        began = time.time()
        try:
            start = time.perf_counter()
            receipt = morphogen.morph(net, target, optimizer=optimizer)
            bench.synchronize()
            row["morph s"] = time.perf_counter() - start
            row["new entries"] = receipt.new
            height = (target.resolution or (side, side))[0]
            step = stepped(model, optimizer, height)
            start = time.perf_counter()
            step()
            bench.synchronize()
            row["first step s"] = time.perf_counter() - start
            (whole_seconds, whole_asked), (seconds, asked) = interleaved(
                bench, [dense, step], min(3.0, bench.left() / (2 * left))
            )
            flops = dense_flops / cost(net, target, batch).training
            speedup = whole_seconds / seconds
            row |= {"dense ms": 1000 * whole_seconds, "ms": 1000 * seconds, "speedup": speedup, "in FLOPs": flops}
            row |= {"dense asked ms": 1000 * whole_asked, "asked ms": 1000 * asked}
            row["realised"] = (speedup - 1) / (flops - 1) if flops > 1.05 else None
            row["channels"] = sum(len(units) for units in target.channels.values())
            if bench.cuda:
                row["peak MiB"] = step.peak() / 2**20
                row["by the model MiB"] = modelled.bytes(target, batch) / 2**20
        except RuntimeError as error:  # out of memory, or a size that a kernel refuses
            row["error"] = str(error).strip().splitlines()[0][:200]
        except OutOfTime:  # what was measured before it stands
            figures["left out"] = left
            break
        longest = max(longest, time.time() - began)
        rows.append(row)
        bench.note(row=row)
    figures["steps"] = rows
    whole = [row for row in rows if "speedup" in row]
    for method in dict.fromkeys(row["sub-network"].rpartition(" stage ")[0] for row in whole):
        of_it = [row for row in whole if method and row["sub-network"].startswith(f"{method} stage ")]
        if of_it:  # stages of equal length, the dense network last
            figures[f"{method} whole run"] = (len(of_it) + 1) / (1 + sum(1 / row["speedup"] for row in of_it))
            figures[f"{method} whole run in FLOPs"] = (len(of_it) + 1) / (1 + sum(1 / row["in FLOPs"] for row in of_it))
    if not whole:
        raise RuntimeError(f"no sub-network was measured: {rows}")
    if bench.cuda:
        figures["TFLOP/s of dense"] = dense_flops / (whole[-1]["dense ms"] / 1000) / 1e12
    bench.figures.pop("row", None)
    return figures


@check("steps: ResNet-50", 75, turn=3, least=20)
def resnet50(bench: Bench) -> dict[str, Any]:
    return measure(bench, "ResNet-50")


@check("steps: DeiT-S", 60, turn=3, least=20)
def deit_s(bench: Bench) -> dict[str, Any]:
    return measure(bench, "DeiT-S")


@check("steps: VOLO-D1", 60, turn=3, least=20)
def volo_d1(bench: Bench) -> dict[str, Any]:
    return measure(bench, "VOLO-D1")


@check("steps: DeiT-S, compiled", 100, turn=5, least=60, cuda=True)
def deit_s_compiled(bench: Bench) -> dict[str, Any]:
    return measure(bench, "DeiT-S", compile_them=True, only=("Prog, stage 1", "half depth", "half width"))


@check("steps: ResNet-50, compiled", 130, turn=5, least=90, cuda=True)
def resnet50_compiled(bench: Bench) -> dict[str, Any]:
    return measure(
        bench, "ResNet-50", compile_them=True, only=("width, by 64, stage 1", "112 px", "width, by 8, stage 3")
    )

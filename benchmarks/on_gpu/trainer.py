"""Whether the reference trainer runs on the device with every switch, on small made-up images, and out of memory."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import ImageFolder
from torchvision.io import write_jpeg

from morphogen.machine.private import compilations
from morphogen.methods import build_method
from morphogen.train.checkpoint import Checkpoints
from morphogen.train.data import Data, MemoryData, StreamData
from morphogen.train.images import read_image
from morphogen.train.loop import Run
from morphogen.train.recipe import Recipe

from .common import check_channels_last, check_held, deterministic
from .harness import Bench, check

GROWTH = "NetworkExpansion(width=0.5, stages=2, multiple_of=8)"
VIT = "timm:vit_tiny_patch16_224(img_size=16, patch_size=4, embed_dim=48, depth=4, num_heads=3)"


def recipe_of(bench: Bench, **settings: Any) -> Recipe:
    """A small recipe on the device."""
    own = {"model": "resnet8(width=16)", "epochs": 4, "batch_size": 64, "lr": 0.05, "device": str(bench.device)}
    return Recipe(**{**own, **settings})


def data_of(recipe: Recipe, side: int = 16, count: int = 512) -> MemoryData:
    """Ten patterns in noise: bytes that can be learnt, without a package that brings them."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(256, (10, 3, side, side), generator=generator)
    labels = torch.arange(count) % 10
    noise = torch.randint(256, (count, 3, side, side), generator=generator)
    pair = (patterns[labels] * 2 + noise).div(3).to(torch.uint8), labels
    return MemoryData("patterns", pair, (pair[0][:200], labels[:200]), recipe, crop=1, flip=False)


def trained(
    bench: Bench, method: str = GROWTH, data: Data | None = None, **settings: Any
) -> tuple[Run, dict[str, Any]]:
    """A whole run, and what is worth telling of it."""
    recipe = recipe_of(bench, **settings)
    before = compilations()
    run = Run(recipe, data or data_of(recipe), build_method(method), method, bench.seed)
    losses = [epoch.loss for epoch in run.epochs()]
    assert all(loss == loss for loss in losses), losses
    assert losses[-1] < losses[0], f"nothing was learnt: {losses}"
    check_held(run.model, run.optimizer)
    check_channels_last(run.model)
    assert run.ledger.peak_memory > 0
    compiled = compilations() - before
    if recipe.compile:
        sizes = len({subnetwork for epoch, subnetwork in run.attached.history if epoch < recipe.epochs})
        assert compiled == sizes, f"{compiled} compilations for {sizes} sizes"
    seconds = run.ledger.seconds
    return run, {
        "accuracy": run.ledger.accuracy,
        "seconds of training": run.ledger.training_seconds,
        "step s": seconds["step"],
        "compile s": seconds["compile"],
        "compilations": compiled,
        "peak MiB": run.ledger.peak_memory / 2**20,
    }


@check("train: float32", 30, turn=2)
def float32(bench: Bench) -> dict[str, Any]:
    return trained(bench)[1]


@check("train: bfloat16, fused, EMA", 30, turn=2)
def bfloat16(bench: Bench) -> dict[str, Any]:
    return trained(bench, precision="bfloat16", fused=True, ema=0.9)[1]


@check("train: float16 with GradScaler", 30, turn=2)
def float16(bench: Bench) -> dict[str, Any]:
    run, figures = trained(bench, precision="float16", clip_grad=1.0)
    return figures | {"scale": run.stepper.state_dict()["scaler"]["scale"]}


@check("train: ViT, AdamW, mixup, erasing", 40, turn=2)
def vit_recipe(bench: Bench) -> dict[str, Any]:
    settings: dict[str, Any] = {"optimizer": "adamw", "lr": 2e-3, "precision": "bfloat16", "fused": True}
    more = {"mixup": 0.2, "cutmix": 0.2, "erasing": 0.1, "drop_path": 0.1, "label_smoothing": 0.1}
    return trained(bench, "Prog(stages=2)", model=VIT, epochs=8, **settings, **more)[1]


@check("train: AutoProg", 60, turn=2)
def autoprog(bench: Bench) -> dict[str, Any]:
    method = "AutoProg(stages=2, search_epochs=2)"
    run, figures = trained(bench, method, model=VIT, optimizer="adamw", lr=2e-3, precision="bfloat16", epochs=8)
    assert len(run.ledger.searches) == 1
    return figures | {"search s": run.ledger.seconds["search"]}


@check("train: PruneTrain with DynamicBatch", 60, turn=2)
def prunetrain(bench: Bench) -> dict[str, Any]:
    method = "PruneTrain(ratio=0.8, interval=2, threshold=0.01, proximal=True) + DynamicBatch(step=16, limit=128)"
    run, figures = trained(bench, method, precision="bfloat16", epochs=6)
    assert run.ledger.pruned is not None and run.ledger.pruned.inference
    return figures | {"batch": str([stage.batch_size for stage in run.ledger.stages])}


@check("train: resumed bit for bit", 60, turn=2)
def resumed(bench: Bench) -> dict[str, Any]:
    """Through a checkpoint's file, with random numbers of the device in use (dropout, erasing)."""
    recipe = recipe_of(bench, precision="bfloat16", erasing=0.2, model="resnet8(width=8)")

    def begun(checkpoints: Checkpoints | None = None) -> Run:
        return Run(recipe, data_of(recipe), build_method(GROWTH), GROWTH, bench.seed, checkpoints=checkpoints)

    with deterministic(), tempfile.TemporaryDirectory() as folder:
        ends = []
        for stop in (False, True):
            run = begun(Checkpoints(Path(folder), every=0) if stop else None)
            for number, _ in enumerate(run.epochs()):
                if stop and number == 1:
                    break
            if stop:
                state = Checkpoints(Path(folder)).latest()
                assert state is not None
                run = begun()
                run.load_state_dict(state)
                for _ in run.epochs():
                    pass
            ends.append(run.model.state_dict())
        other = [name for name, tensor in ends[0].items() if not torch.equal(tensor, ends[1][name])]
        assert not other, f"{len(other)} tensors differ, {other[0]} first"
    return {}


@contextmanager
def image_folder(recipe: Recipe, count: int = 192) -> Iterator[StreamData]:
    """JPEG files, decoded by worker processes."""
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            path = Path(folder) / ("train" if index < count - 64 else "val") / "ab"[index % 2]
            path.mkdir(parents=True, exist_ok=True)
            image = torch.full((3, 90, 100), 60 + 120 * (index % 2), dtype=torch.uint8)
            image[:, : index % 80] //= 2
            write_jpeg(image, str(path / f"{index}.jpg"))
        parts = [ImageFolder(f"{folder}/{part}", loader=read_image) for part in ("train", "val")]
        yield StreamData("files", *parts, recipe)


@check("train: pinned loading from files", 60, turn=2)
def pinned(bench: Bench) -> dict[str, Any]:
    settings = {"image_size": 64, "batch_size": 32, "workers": 2, "precision": "bfloat16"}
    with image_folder(recipe_of(bench, **settings)) as data:
        _, figures = trained(bench, "ProgressiveResizing(stages=2)", data, **settings)
    return figures


@check("train: a batch that does not fit", 60, turn=2, cuda=True)
def does_not_fit(bench: Bench) -> dict[str, Any]:
    """Memory is made scarce, and the step goes in pieces."""
    recipe = recipe_of(bench, model="resnet8(width=64)", batch_size=512, epochs=2)
    data = data_of(recipe, side=32, count=1024)
    run = Run(recipe, data, build_method("Dense"), "Dense", bench.seed)
    need = run.attached.memory.bytes(run.attached.network.dense, 512)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + need / 2) / total)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        losses = [epoch.loss for epoch in run.epochs()]
    assert all(loss == loss for loss in losses)
    assert run.stepper.pieces > 1 and any("pieces" in str(warning.message) for warning in told)
    return {"pieces": run.stepper.pieces}


def _compiled(bench: Bench, **settings: Any) -> dict[str, Any]:
    torch.compiler.reset()
    try:
        return trained(bench, **settings)[1]
    finally:
        torch.compiler.reset()


@check("train: compile", 90, turn=4, least=30, cuda=True)
def compiles(bench: Bench) -> dict[str, Any]:
    return _compiled(bench, compile=True)


@check("train: compile with CUDA graphs", 90, turn=4, least=30, cuda=True)
def cuda_graphs(bench: Bench) -> dict[str, Any]:
    return _compiled(bench, compile=True, cuda_graphs=True)


@check("train: fast", 90, turn=4, least=30, cuda=True)
def fast(bench: Bench) -> dict[str, Any]:
    return _compiled(bench, fast=True)


@check("train: fast, AdamW and EMA on a ViT", 90, turn=4, least=30, cuda=True)
def fast_vit(bench: Bench) -> dict[str, Any]:
    """Momentum growth and averages beside graphs that hold on to the weights' addresses."""
    settings = {"model": VIT, "optimizer": "adamw", "lr": 2e-3, "ema": 0.9}
    return _compiled(bench, method="Prog(stages=2)", fast=True, **settings)

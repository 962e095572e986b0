"""Whether methods work in a plain loop on the device: growth, search, pruning, batches, resuming, several ranks."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import morphogen
from morphogen.cost.memory import StepMemory
from morphogen.parts import Batch, Prune, Search
from morphogen.plan import Training, plan

from .common import (
    Batches,
    batches,
    check_channels_last,
    check_held,
    cnn,
    deterministic,
    peak_of,
    plain_steps,
    sgd,
    train,
    train_epoch,
    vit,
)
from .harness import Bench, check


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-3, fused=True)


@check("loop: width growth with EMA", turn=1)
def width(bench: Bench) -> dict[str, Any]:
    model, data = cnn(bench), batches(bench)
    optimizer, ema = sgd(model, fused=True), ModelEmaV3(model, decay=0.9)
    method = morphogen.NetworkExpansion(width=0.5, stages=3, multiple_of=4)
    run = morphogen.attach(model, optimizer, method, example=data[0][0], epochs=3, ema=ema)
    loss = train(run, optimizer, data, 3)
    check_held(model, optimizer)
    check_channels_last(model)
    check_channels_last(ema.module)
    assert len(run.history) == 3 and run.network.current == run.network.dense
    cnn(bench).load_state_dict(model.state_dict())
    return {"loss": loss}


@check("loop: Prog with momentum growth", 30, turn=1)
def prog(bench: Bench) -> dict[str, Any]:
    model, data = vit(bench, drop_path_rate=0.1), batches(bench)
    optimizer = _adamw(model)
    run = morphogen.attach(model, optimizer, morphogen.Prog(stages=3), example=data[0][0], epochs=3, steps_per_epoch=2)
    loss = train(run, optimizer, data, 3)
    check_held(model, optimizer)
    assert len(run.history) == 3 and run.network.current == run.network.dense
    return {"loss": loss}


@check("loop: rezero and its end", turn=1)
def rezero(bench: Bench) -> dict[str, Any]:
    model, data = vit(bench), batches(bench)
    optimizer, keys = _adamw(model), [*model.state_dict()]
    method = morphogen.NetworkExpansion(depth=0.5, stages=2, depth_operator="rezero")
    run = morphogen.attach(model, optimizer, method, example=data[0][0], epochs=2, steps_per_epoch=2)
    loss = train(run, optimizer, data, 2)
    assert [*model.state_dict()] == keys
    return {"loss": loss}


@check("loop: EfficientTrain, low frequencies", turn=1)
def low_frequencies(bench: Bench) -> dict[str, Any]:
    """A Fourier transform of images on the device."""
    model, data = cnn(bench), batches(bench)
    optimizer = sgd(model)
    run = morphogen.attach(model, optimizer, morphogen.EfficientTrain(), example=data[0][0], epochs=10)
    return {"loss": train(run, optimizer, data, 10)}


@check("loop: float16 with GradScaler", turn=1)
def scaled(bench: Bench) -> dict[str, Any]:
    """The scaler's own look at the gradients, across a growth."""
    model, data = cnn(bench), batches(bench)
    optimizer, scaler = sgd(model, fused=True), torch.amp.GradScaler(bench.device.type)
    method = morphogen.NetworkExpansion(width=0.5, stages=2)
    run = morphogen.attach(model, optimizer, method, example=data[0][0], epochs=2)
    for epoch in range(2):
        run.begin_epoch(epoch)
        for images, labels in data:
            optimizer.zero_grad()
            with torch.autocast(bench.device.type, torch.float16):
                loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    run.end()
    check_held(model, optimizer)
    assert scaler.get_scale() > 0 and torch.isfinite(loss)
    return {"scale": scaler.get_scale()}


def _pruned(bench: Bench, proximal: bool) -> dict[str, Any]:
    """A few steps make nothing sparse by themselves, so some channels begin at zero, where they stay."""
    model, data = cnn(bench), batches(bench, count=6)
    optimizer = sgd(model)
    method = morphogen.PruneTrain(ratio=0.3, interval=2, threshold=0.02, proximal=proximal)
    run = morphogen.attach(model, optimizer, method, example=data[0][0], epochs=6)
    net, before = run.network, sum(p.numel() for p in model.parameters())
    alive = net.structure.alive_mask(net.subnetwork(width=0.75))
    with torch.no_grad():
        for name, layout in net.structure.present(net.dense).items():
            for dim, axis in enumerate(layout.axes):
                if axis is not None and layout.role.kind == "weight":
                    gone = (~alive[axis]).nonzero().flatten().to(bench.device)
                    model.get_parameter(name).index_fill_(dim, gone, 0.0)
    loss = train(run, optimizer, data, 6)
    check_held(model, optimizer)
    check_channels_last(model)
    after = sum(p.numel() for p in model.parameters())
    assert after < before, "nothing was pruned"
    prune = run.part(Prune)
    assert prune is not None and prune.pruner.coefficient
    return {"loss": loss, "of the weights": after / before, "coefficient": prune.pruner.coefficient}


@check("loop: PruneTrain, penalty in the loss", 30, turn=1)
def penalty(bench: Bench) -> dict[str, Any]:
    return _pruned(bench, proximal=False)


@check("loop: PruneTrain, proximal", 30, turn=1)
def proximal(bench: Bench) -> dict[str, Any]:
    return _pruned(bench, proximal=True)


@check("loop: DynamicBatch with the allocator", 40, turn=1)
def dynamic_batch(bench: Bench) -> dict[str, Any]:
    """The batch that the model of memory gives, and what the allocator then says."""
    first, side = bench.pick(128, 8), 32
    model = cnn(bench, width=bench.pick(64, 8))
    optimizer = sgd(model)
    method = morphogen.NetworkExpansion(width=0.5, stages=2) + morphogen.DynamicBatch(step=bench.pick(32, 4))
    example = batches(bench, 1, first, side)[0][0]
    run = morphogen.attach(
        model,
        optimizer,
        method,
        example=example,
        epochs=4,
        steps_per_epoch=16,
        batch_size=first,
        autocast=torch.bfloat16,
    )
    sizes, factors = [], []
    for epoch in range(4):
        run.begin_epoch(epoch)
        batch = run.part(Batch)
        assert run.batch_size is not None and batch is not None
        sizes.append(run.batch_size)
        # The loop reads the batch after `begin_epoch`, which a second call leaves as it is.
        train_epoch(run, optimizer, batches(bench, 4, run.batch_size, side), epoch)
        factors.append(batch.batching.factor)
    run.end()
    assert sizes[0] > first and sizes[-1] == first, sizes
    if bench.cuda:
        assert factors[0] != 1 and 0.3 < factors[-1] < 3, factors
    return {"batches": str(sizes), "measured by modelled": str([round(factor, 3) for factor in factors])}


@check("loop: AutoProg and its supernet", 60, turn=1)
def autoprog(bench: Bench) -> dict[str, Any]:
    model, data = vit(bench), batches(bench, count=30)  # a few steps of each candidate
    optimizer = _adamw(model)

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            return F.cross_entropy(model(images), labels)

    probe = morphogen.Probe(loss, subset=data[:2])
    run = morphogen.attach(
        model,
        optimizer,
        morphogen.AutoProg(stages=2, search_epochs=1),
        example=data[0][0],
        epochs=4,
        steps_per_epoch=len(data),
        probe=probe,
    )
    end = train(run, optimizer, data, 4)
    check_held(model, optimizer)
    search = run.part(Search)
    assert search is not None
    found = search.searches[0]
    seconds = [candidate.seconds for candidate in found.candidates]
    assert all(0 < each < 60 for each in seconds), seconds
    return {
        "loss": end,
        "chosen": str({name: len(units) for name, units in found.subnetwork.blocks.items()}),
        "ms of candidates": str([round(1000 * each, 2) for each in seconds]),
        "measuring s": found.seconds,
    }


def _attached(bench: Bench, make: Callable[..., nn.Module], method: morphogen.Method, data: Batches) -> tuple[Any, Any]:
    torch.manual_seed(bench.seed)
    model = make(bench)
    optimizer = sgd(model, fused=True) if make is cnn else _adamw(model)
    run = morphogen.attach(model, optimizer, method, example=data[0][0], epochs=4, steps_per_epoch=len(data))
    return run, optimizer


def _epochs(run: Any, optimizer: Any, data: Batches, epochs: range) -> None:
    for epoch in epochs:
        torch.manual_seed(epoch)  # what operators draw
        train_epoch(run, optimizer, data, epoch)


@check("resume bit for bit", 60, turn=1)
def resume(bench: Bench) -> dict[str, Any]:
    """A run that went through a file in the middle ends with the same bits, as do two runs of the same seed."""
    methods = {
        cnn: morphogen.NetworkExpansion(width=0.5, stages=4, multiple_of=4),
        vit: morphogen.Prog(stages=4),
    }
    with deterministic():
        for make, method in methods.items():
            data = batches(bench, count=3)
            ends = []
            for stop in (None, None, 2, 3):
                run, optimizer = _attached(bench, make, method, data)
                _epochs(run, optimizer, data, range(4 if stop is None else stop))
                if stop is not None:
                    file = io.BytesIO()
                    torch.save(run.state_dict(), file)
                    file.seek(0)
                    state = torch.load(file, weights_only=True, map_location="cpu" if stop == 3 else None)
                    run, optimizer = _attached(bench, make, method, data)
                    run.load_state_dict(state)
                    assert all(p.device.type == bench.device.type for p in run.network.model.parameters())
                    _epochs(run, optimizer, data, range(stop, 4))
                run.end()
                ends.append({name: t.clone() for name, t in run.network.model.state_dict().items()})
            for number, what in ((1, "the same run again"), (2, "resumed"), (3, "resumed from tensors on a CPU")):
                other = [name for name, t in ends[0].items() if not torch.equal(t, ends[number][name])]
                assert not other, f"{make.__name__}, {what}: {len(other)} tensors differ, {other[0]} first"
    return {}


@check("memory: modelled and measured, small", 40, turn=1)
def memory(bench: Bench) -> dict[str, Any]:
    """A step by the allocator's peak, and by the model; on a CPU there is nothing to measure."""
    model = cnn(bench, width=bench.pick(64, 8))
    optimizer, images = sgd(model), bench.pick(256, 8)
    net = morphogen.trace(model, batches(bench, 1, 2)[0][0])
    modelled = StepMemory(net, [optimizer], autocast=torch.bfloat16)
    rows = []
    for share in (1.0, 0.5):
        target = net.subnetwork(width=share)
        morphogen.morph(net, target, optimizer=optimizer)
        row = {"width": share, "modelled MiB": modelled.bytes(target, images) / 2**20}
        if bench.cuda:
            data = batches(bench, 1, images)

            def step(data: Batches = data) -> None:
                with torch.autocast(bench.device.type, torch.bfloat16):
                    plain_steps(model, optimizer, data)

            step()
            row["measured MiB"] = peak_of(step, model.parameters(), optimizer, data[0][0]) / 2**20
        rows.append(row)
    return {"steps": rows}


@check("planner", 60, turn=1)
def planner(bench: Bench) -> dict[str, Any]:
    images, labels = batches(bench, 1, bench.pick(128, 8))[0]
    training = Training(images, labels, sgd)
    seconds, method = bench.pick(5.0, 0.3), morphogen.NetworkExpansion(width=0.5, stages=2)
    made = plan(cnn(bench, width=bench.pick(64, 8)), method, training, epochs=4, steps_per_epoch=10, seconds=seconds)
    text = str(made.to_dict())
    assert "nan" not in text
    return {"predicted speedup": made.runs[0].prediction.speedup if made.runs[0].prediction else None}


@check("DistributedDataParallel, one rank", 60, turn=1)
def one_rank(bench: Bench) -> dict[str, Any]:
    """NCCL on a GPU, gloo on a CPU; the wrapper stays the same object across growth."""
    backend = "nccl" if bench.cuda else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            model, data = cnn(bench), batches(bench, count=3)
            optimizer = sgd(model)
            method = morphogen.NetworkExpansion(width=0.5, stages=3)
            run = morphogen.attach(model, optimizer, method, example=data[0][0], epochs=3)
            wrapper = DistributedDataParallel(model, device_ids=[0] if bench.cuda else None)
            losses = [train_epoch(run, optimizer, data, epoch, model=wrapper)[-1] for epoch in range(3)]
            run.end()
            check_held(model, optimizer)
            assert run.network.current == run.network.dense
            assert all(parameter.grad is not None for parameter in model.parameters())
            assert all(torch.isfinite(loss) for loss in losses)
            value = torch.ones(4, device=bench.device)
            distributed.all_reduce(value)
            gathered: list[Any] = [None]
            distributed.all_gather_object(gathered, {"plain": "data"})
            assert gathered[0] == {"plain": "data"}
        finally:
            distributed.destroy_process_group()
    return {"backend": backend}

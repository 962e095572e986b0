"""Golden runs: small trainings whose outcome is written down in `golden.json`, to the last bit.

    python tests/golden.py                    # run all, and say what differs from what is written down
    python tests/golden.py --write            # write them all down anew, and say what has changed
    python tests/golden.py --write Prog SSL   # these alone

A change of how a run is driven must leave all of them as they are. Where one is meant to change, write it down anew and
name it in the commit: which runs, what of them (the weights alone? the sub-networks too?), and why.

Sub-networks, searches' choices and counts of a run hold on every machine. The last bits of its weights depend on the
processor and on PyTorch; they are compared where `reference` comes out as on the machine that wrote them down.
Elsewhere the losses and the mean size of the weights are compared, to 2 %.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen
from morphogen.machine.timing import StepClock
from morphogen.methods import build_method
from morphogen.parts import Search
from morphogen.train import books
from morphogen.train.loop import Run
from morphogen.train.models import build_model
from morphogen.train.recipe import Recipe
from morphogen.train.sources import load_data

FILE = Path(__file__).with_name("golden.json")

CLOSE = 0.02
"""By how much losses and the size of weights may differ from one machine to another, as a share."""

CNN = "resnet8(width=8)"
TOWER = "nets:Tower(channels=12)"
VIT = "timm:vit_tiny_patch16_224(img_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.1)"

ADAMW: dict[str, Any] = {"optimizer": "adamw", "lr": 5e-3}
SEARCH: dict[str, Any] = {"images": 288}
"""Nine steps in an epoch, one for each candidate."""
PRUNED: dict[str, Any] = {"model": "golden:fading"}
PRUNED_MORE: dict[str, Any] = {"model": f"golden:fading(net='{CNN}')"}


def fading(num_classes: int, net: str = "nets:Residual") -> nn.Module:
    """A residual network some of whose inner channels nothing feeds or reads, so that the penalty alone moves them.

    They become zero one after the other, at epochs that do not depend on the last bits.
    """
    model = build_model(net, num_classes)
    with torch.no_grad():
        for block in model.modules():
            if hasattr(block, "conv1") and hasattr(block, "conv2"):
                for channel, share in enumerate([0.0, 0.02, 0.05, 0.1, 0.2]):
                    block.conv1.weight[channel] *= share
                    for tensor in (block.bn1.weight, block.bn1.bias, block.conv2.weight.transpose(0, 1)):
                        tensor[channel] = 0.0
    return model


SCHEDULE: dict[str, Any] = {
    "format": "morphogen schedule 1",
    "epochs": 6,
    "stages": [
        {
            "epoch": epoch,
            "subnetwork": {"channels": {"conv1": channels}, "blocks": {"blocks": blocks}, "resolution": [side, side]},
        }
        for epoch, channels, blocks, side in [(0, "0:8", "0:2", 4), (2, "0:8", "0:3", 6), (4, "0:12", "0:4", 8)]
    ],
    "settings": {
        "operator": "orthogonal",
        "depth_operator": "interpolate",
        "decay": None,
        "horizon": 0.1,
        "resizing": "bilinear",
    },
    "regularisation": [[1.0, 1.0, 0.2 * epoch] for epoch in range(6)],
}
"""What `Retrain` reads."""


@dataclass(frozen=True)
class Golden:
    """One run.

    Attributes:
        method: as on the command line; SCHEDULE is replaced by the path of a file.
        recipe: what is not as usual.
        plain: in a user's own loop instead of the reference trainer.
    """

    method: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False


PROXIMAL = "PruneTrain(interval=2, proximal=True, ratio=0.5)"
TARGET = "PruneTrain(interval=1, ratio=0.4, folded=True, target=0.8, finetune=0.3, proximal=True)"
WIDE = "NetworkExpansion(width=0.5, stages=3)"
DEEP = "NetworkExpansion(depth=0.5, stages=2)"

RUNS = {
    "Dense": Golden("Dense", {"label_smoothing": 0.1, "warmup_epochs": 1}),
    "DynamicBatch": Golden("DynamicBatch(budget=2000000, step=16)", {"model": "nets:Residual"}),
    "EfficientTrain": Golden("EfficientTrain", {"randaugment": 5.0, "erasing": 0.25, "model": "nets:Residual"}),
    "NetworkExpansion width": Golden(WIDE, {"clip_grad": 1.0}),
    "NetworkExpansion depth": Golden(DEEP, {"model": VIT, "ema": 0.9, **ADAMW}),
    "GrowOnce": Golden("GrowOnce(at=0.5, depth=0.5, resolution=0.625)", {"model": VIT, "lr_schedule": "wsd", **ADAMW}),
    "NetworkExpansion + AdaptRates": Golden(f"{WIDE} + AdaptRates", {"model": "nets:Residual", **ADAMW}),
    "Net2Net": Golden("Net2Net(stages=3)", {"model": "nets:Residual"}),
    "Bert2BERT": Golden("Bert2BERT(depth=0.5)", {"model": TOWER, **ADAMW}),
    "Prog": Golden("Prog(stages=2)", {"model": VIT, "mixup": 0.8, **ADAMW}),
    "StackBERT": Golden("StackBERT", {"model": TOWER, **ADAMW}),
    "ProgStack": Golden("ProgStack", {"model": TOWER}),
    "ProgressiveResizing": Golden("ProgressiveResizing(stages=3)", {"model": "nets:Residual", "ema": 0.9}),
    "ProgressiveUnfreezing": Golden("ProgressiveUnfreezing(shares=(0.5, 1.0))", {"model": "nets:Residual", "ema": 0.9}),
    "AutoProgZero": Golden("AutoProgZero(shares=(0.3, 0.6, 1.0), stages=3)", {"model": VIT, **ADAMW}),
    "PruneTrain": Golden("PruneTrain(interval=2, threshold=0.012)", PRUNED),
    "PruneTrain proximal": Golden(PROXIMAL, {**PRUNED_MORE, **ADAMW}),
    "PruneTrain to a target": Golden(TARGET, {**PRUNED, "ema": 0.9}),
    "PruneEarly": Golden("PruneEarly(at=0.34, multiple_of=1)", {"model": CNN, "ema": 0.9}),
    "OneTime": Golden("OneTime(threshold=0.012)", {**PRUNED, "ema": 0.9}),
    "SSL": Golden("SSL(threshold=0.012)", PRUNED),
    "GrowThenPrune": Golden("GrowThenPrune(start=0.34, interval=2, proximal=True, ratio=0.4, threshold=0.005)", PRUNED),
    "Supernet": Golden("Supernet", {"model": TOWER, "epochs": 2, **SEARCH}),
    "AutoProg": Golden("AutoProg(stages=3, search_epochs=1, subset=64)", {"model": TOWER, "ema": 0.9, **SEARCH}),
    "AutoProg without recycling": Golden(
        "AutoProg(stages=3, search_epochs=1, subset=64, recycle=False, depth_operator='rezero')",
        {"model": TOWER, **ADAMW, **SEARCH},
    ),
    "Retrain": Golden("Retrain(file='SCHEDULE')", {"model": TOWER}),
    "EfficientTrain + NetworkExpansion": Golden(f"EfficientTrain + {DEEP}", {"model": TOWER, **ADAMW}),
    "NetworkExpansion + ProgressiveResizing": Golden(
        f"{WIDE} + ProgressiveResizing(stages=2)", {"model": "nets:Residual"}
    ),
    "PruneTrain + DynamicBatch": Golden("PruneTrain(interval=2, threshold=0.012) + DynamicBatch(step=4)", PRUNED),
    "ProgressiveResizing + PruneTrain": Golden(f"ProgressiveResizing(stages=2) + {PROXIMAL}", PRUNED),
    "plain NetworkExpansion": Golden(WIDE, {"model": "nets:Residual"}, plain=True),
    "plain Prog": Golden("Prog(stages=3)", {"model": TOWER, **ADAMW}, plain=True),
    "plain PruneTrain proximal": Golden(PROXIMAL, PRUNED, plain=True),
    "plain PruneTrain to a target": Golden(TARGET, {**PRUNED_MORE, **ADAMW}, plain=True),
    "plain AutoProg": Golden("AutoProg(stages=3, search_epochs=1)", {"model": TOWER, **SEARCH}, plain=True),
}
"""What is written down, by name."""

USUAL: dict[str, Any] = {
    "model": CNN,
    "epochs": 6,
    "batch_size": 32,
    "images": 128,
    "test_images": 64,
    "image_size": 8,
    "warn_drop": 100.0,
    "device": "cpu",
    "lr_schedule": "cosine",
}


@dataclass
class Outcome:
    """What comes out of a run.

    Attributes:
        model: as it ended.
        optimizer: of it.
        averages: copies of it that were averaged.
        losses: of every epoch (in a plain loop of every step).
        history: (epoch, sub-network) of each stage.
        searches: as JSON types.
        counts: steps, images, FLOPs and the like, as JSON types: the same on every machine.
        figures: other figures that are no times, as JSON types.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    averages: list[nn.Module]
    losses: list[float]
    history: list[tuple[int, morphogen.SubNetwork]]
    searches: list[dict[str, Any]]
    counts: dict[str, Any]
    figures: dict[str, Any]


# --- what differs from run to run, put aside ---------------------------------------------------------------


def times_of(candidates: int) -> dict[int, float]:
    """By their number; that in the middle is the fastest."""
    return {number: 1.0 + abs(number - candidates // 2) / 8 for number in range(candidates)}


@contextmanager
def steady() -> Iterator[None]:
    """One thread, times of candidates by their number, no speeds measured; afterwards all is as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            patch.setattr(StepClock, "medians", lambda clock: times_of(len(clock.read())))
            patch.setattr(books, "inference_speeds", lambda *arguments: [])
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)


# --- the runs ----------------------------------------------------------------------------------------------


def outcome(name: str) -> Outcome:
    """Train."""
    golden = RUNS[name]
    with steady(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "schedule.json"
        file.write_text(json.dumps(SCHEDULE))
        method = build_method(golden.method.replace("SCHEDULE", file.as_posix()))
        recipe = Recipe(**{**USUAL, **golden.recipe})
        return (plain_loop if golden.plain else reference_trainer)(method, recipe)


def reference_trainer(method: morphogen.Method, recipe: Recipe) -> Outcome:
    """As the command line does it."""
    run = Run(recipe, load_data(recipe), method, "golden", seed=0)
    for _ in run.epochs():
        pass
    record = run.ledger.record()
    stages = [dict(stage) for stage in record["stages"]]
    counted = [{key: value for key, value in stage.items() if key not in ("memory", "gated")} for stage in stages]
    pruned = record["pruned"] or {}
    return Outcome(
        run.model,
        run.optimizer,
        [average.module for average in run.averages],
        [epoch["loss"] for epoch in record["epochs"]],
        run.attached.history,
        record["searches"],
        {
            "epochs": [epoch["epoch"] for epoch in record["epochs"]],
            "morphs": [event["epoch"] for event in record["morphs"]],
            "flops": record["flops"],
            "samples": record["samples"],
            "stages": [line(**stage) for stage in counted],
            "history": digest(record["history"]),
            "schedule": digest(record["schedule"]),
            "rescues": record["rescues"],
        },
        {
            "accuracy": [epoch["accuracy"] for epoch in record["epochs"]],
            "around morphs": [(event["accuracy_before"], event["accuracy_after"]) for event in record["morphs"]],
            "memory": [stage["memory"] for stage in stages],
            "predicted speedup": record["predicted_speedup"],
            "pruned": {key: pruned.get(key) for key in ("coefficient", "sparsity", "density")},
        },
    )


def plain_loop(method: morphogen.Method, recipe: Recipe) -> Outcome:
    """As a user does it, with a moving average beside the model."""
    torch.manual_seed(0)
    model = build_model(recipe.model, 10)
    make = torch.optim.AdamW if recipe.optimizer == "adamw" else functools.partial(torch.optim.SGD, momentum=0.9)
    optimizer = make(model.parameters(), lr=recipe.lr / 10)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    numbers = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(16, 3, 8, 8, generator=numbers), torch.randint(10, (16,), generator=numbers))
        for _ in range(recipe.images // recipe.batch_size)
    ]

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(images), labels)

    losses, counts = list[float](), list[str]()
    run = morphogen.attach(
        model,
        optimizer,
        method,
        example=batches[0][0],
        epochs=recipe.epochs,
        steps_per_epoch=len(batches),
        ema=average,
        probe=morphogen.Probe(loss_of, batches[:2]),
        batch_size=16,
    )
    seen = list[torch.Tensor]()
    model.register_forward_pre_hook(lambda model, args: seen.append(args[0]))  # behind the run's own
    epoch = 0
    while epoch < recipe.epochs:
        run.begin_epoch(epoch)
        for images, labels in batches:
            loss = loss_of(images, labels)
            optimizer.zero_grad()
            run.penalised(loss).backward()
            optimizer.step()
            average.update_parameters(model)
            losses.append(loss.item())
            counts.append(f"epoch {epoch}: {'x'.join(map(str, seen[-1].shape))}")
        epoch = run.next_epoch(epoch)
    search = run.part(Search)
    searches = [] if search is None else [found.record() for found in search.searches]
    return Outcome(model, optimizer, [average], losses, run.history, searches, {"steps": in_a_row(counts)}, {})


TIMED = ("seconds", "within_steps")
"""What of a search's record is a time."""


# --- what of them is written down --------------------------------------------------------------------------


def line(**figures: Any) -> str:
    """Figures by name, to read."""
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def in_a_row(lines: Iterable[str]) -> list[str]:
    """Lines that are alike in a row, once, with their number."""
    return [f"{text} ({sum(1 for _ in same)} times)" for text, same in itertools.groupby(lines)]


def digest(value: Any) -> str:
    """Of JSON types; floats to the last bit."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Of names, dtypes, shapes and bytes, in this order."""
    total = hashlib.sha256()
    for name, tensor in tensors:
        data = tensor.detach().cpu().contiguous()
        total.update(f"{name} {data.dtype} {tuple(data.shape)} ".encode())
        total.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def digest_of_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> str:
    """Of its groups, whose parameters they hold, and what it keeps of each."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        held = []
        for parameter in group["params"]:
            kept = sorted(optimizer.state.get(parameter, {}).items())
            tensors = digest_of_tensors((key, value) for key, value in kept if isinstance(value, torch.Tensor))
            others = repr([(key, value) for key, value in kept if not isinstance(value, torch.Tensor)])
            held.append([names[id(parameter)], tensors, others])
        settings = sorted((key, repr(value)) for key, value in group.items() if key != "params")
        groups.append([settings, held])
    return digest(groups)


def stage_line(epoch: int, subnetwork: morphogen.SubNetwork) -> str:
    """To read, and at its end a hash of all of it."""
    channels, blocks = (sum(map(len, parts.values())) for parts in (subnetwork.channels, subnetwork.blocks))
    side = "x".join(map(str, subnetwork.resolution or ()))
    return f"epoch {epoch}: {channels} channels, {blocks} blocks, {side}, {digest(subnetwork.to_dict())[:16]}"


def written(found: Outcome) -> dict[str, Any]:
    """The values of a run, as `golden.json` has them."""
    floats = [value.abs() for value in found.model.state_dict().values() if value.is_floating_point()]
    return {
        "history": [stage_line(*stage) for stage in found.history],
        "choices": [
            f"epoch {search['epoch']}: candidate {search['chosen']} of {len(search['candidates'])}, "
            f"{digest([candidate['subnetwork'] for candidate in search['candidates']])[:16]}"
            for search in found.searches
        ],
        "counts": found.counts,
        "close": {
            "losses": found.losses,
            "mean weight": float(torch.cat([value.flatten() for value in floats]).double().mean()),
        },
        "exact": {
            "weights": digest_of_tensors(found.model.state_dict().items()),
            "averages": [digest_of_tensors(average.state_dict().items()) for average in found.averages],
            "optimizer": digest_of_optimizer(found.optimizer, found.model),
            "losses": digest(found.losses),
            "searches": digest([{k: v for k, v in search.items() if k not in TIMED} for search in found.searches]),
            "figures": digest(found.figures),
        },
    }


def differences(golden: Mapping[str, Any], found: Mapping[str, Any], *, same_machine: bool) -> list[str]:
    """What of a run is not as it is written down, a line each."""
    lines = []
    for part in ("history", "choices"):
        for number in range(max(len(golden[part]), len(found[part]))):
            was, now = (side[part][number] if number < len(side[part]) else "nothing" for side in (golden, found))
            if was != now:
                lines.append(f"{part}: {was} has become {now}")
    counts = {key: (golden["counts"].get(key), found["counts"].get(key)) for key in golden["counts"] | found["counts"]}
    lines += [f"counts, {key}: {was} has become {now}" for key, (was, now) in counts.items() if was != now]
    if same_machine:
        parts = [part for part in found["exact"] if golden["exact"].get(part) != found["exact"][part]]
        if parts:
            lines.append(f"to the last bit: {', '.join(parts)}")
        pairs = enumerate(zip(golden["close"]["losses"], found["close"]["losses"], strict=False))
        first = next(((number, was, now) for number, (was, now) in pairs if was != now), None)
        if first is not None:
            lines.append(f"the first loss that differs is number {first[0]}: {first[1]} has become {first[2]}")
        return lines
    was, now = golden["close"], found["close"]
    if len(was["losses"]) != len(now["losses"]):
        lines.append(f"losses: {len(was['losses'])} have become {len(now['losses'])}")
    close = [("mean weight", was["mean weight"], now["mean weight"])]
    close += [(f"loss {i}", *pair) for i, pair in enumerate(zip(was["losses"], now["losses"], strict=False))]
    return lines + [
        f"{what}: {a} has become {b}, by more than {CLOSE:.0%}" for what, a, b in close if not abs(a - b) <= CLOSE * a
    ]


# --- the machine -------------------------------------------------------------------------------------------


@functools.cache
def reference() -> str:
    """A hash of a small computation of all kinds that the runs have: equal where their last bits are.

    PyTorch's version is in it, since optimizers' settings and counted memory depend on it.
    """
    with steady():
        torch.manual_seed(0)
        results = list[torch.Tensor]()
        for width in (5, 8, 12, 16):
            images = torch.randn(8, 3, 8, 8).contiguous(memory_format=torch.channels_last)
            model = nn.Sequential(
                nn.Conv2d(3, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(2 * width),
                nn.Flatten(2),
                nn.Linear(16, 16),
                nn.LayerNorm(16),
                nn.GELU(),
                nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True),
                nn.Flatten(),
                nn.Linear(32 * width, 10),
            )
            for make in (torch.optim.SGD, torch.optim.AdamW):
                optimizer = make(model.parameters(), lr=1e-2)
                for side in (8, 8, 5):
                    some = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
                    some = torch.fft.irfft2(torch.fft.rfft2(F.interpolate(some, (8, 8), mode="bicubic")))
                    optimizer.zero_grad()
                    F.cross_entropy(model(some), torch.arange(8)).backward()
                    optimizer.step()
            results += model.state_dict().values()
            results += torch.linalg.qr(torch.randn(9 * width, width))
        tensors = digest_of_tensors((f"{number}", tensor) for number, tensor in enumerate(results))
    return digest([tensors, torch.__version__.partition("+")[0]])


def read() -> dict[str, Any]:
    """What is written down."""
    return json.loads(FILE.read_text())


def run(name: str) -> dict[str, Any]:
    """Train, and give the values that are compared."""
    return written(outcome(name))


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a run; by default all")
    parser.add_argument("--write", action="store_true", help="write them down anew")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in RUNS]:
        parser.error(f"no run {', '.join(unknown)}; there are {', '.join(RUNS)}")
    golden = read() if FILE.exists() else {"reference": reference(), "runs": {}}
    same = golden["reference"] == reference()
    if not same and options.write and options.names:
        parser.error("the others were written down on another machine, or with another PyTorch; write all of them")
    if not same:
        print("written down on another machine, or with another PyTorch: its weights have other last bits")
    changed, values = 0, dict(golden["runs"])
    for name in options.names or RUNS:
        start = time.process_time()
        values[name] = run(name)
        took = f"{time.process_time() - start:.1f} s"
        before = golden["runs"].get(name)
        exact = same or options.write
        lines = ["new"] if before is None else differences(before, values[name], same_machine=exact)
        changed += bool(lines)
        print(f"{name}: {'changed' if lines else 'as it was'} ({took})", *lines, sep="\n    ", flush=True)
    gone = [name for name in values if name not in RUNS]
    print(*(f"{name}: gone" for name in gone), f"{changed + len(gone)} changed", sep="\n")
    if options.write:
        everything = {"reference": reference(), "runs": {name: values[name] for name in RUNS if name in values}}
        FILE.write_text(json.dumps(everything, indent=1) + "\n")
        return 0
    return int(bool(changed or gone))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

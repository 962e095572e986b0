"""What is done with one model, in a process of its own: the way of Morphogen, and that of Torch-Pruning."""

from __future__ import annotations

import random
import resource
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import morphogen
from morphogen.errors import first_line

from catalogue import build, example
from correct import Wrong, backward, call, check, checks, shake, tensors_in
from untouched import difference, picture

REFUSING = {"trace", "plan", "narrow"}
"""Steps in which Morphogen may say no; afterwards an error is a defect."""

Tell = Callable[[dict[str, Any]], None]


class NothingNarrower(Exception):
    """All went well, and the network is as large as before."""


class Steps:
    """Times the steps of one model, and tells of each before it begins, so that one that never ends is named."""

    def __init__(self, tell: Tell):
        self.tell = tell
        self.current = ""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """One step: seconds by the wall and by the process's own clock, and the peak of memory while it ran."""
        self.current = name
        self.tell({"step": name})
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        wall, clock = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - clock}
            self.tell(
                {"steps": {name: {**seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}}}
            )


def limit(seconds: float, gib: float) -> None:
    """Let this process compute for so long, then end, and allocate so much more than it has; beyond, PyTorch raises."""
    has = next((int(line.split()[1]) for line in _status() if line.startswith("VmData")), 0) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (has + int(gib * 2**30), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (ceil(seconds), resource.RLIM_INFINITY))


def _status() -> list[str]:
    try:
        return Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return []


def work(name: str, tool: str, options: dict[str, Any], tell: Tell) -> None:
    """Measure one model with one tool, and tell the outcome: ok, refused, wrong or failed, and why."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    limit(options["limit"], options["memory"])
    steps = Steps(tell)
    way = morphogen_way if tool == "morphogen" else torch_pruning_way
    try:
        way(name, options, steps)
    except NothingNarrower as error:
        tell({"outcome": "refused", "message": str(error)})
    except Wrong as error:
        tell({"outcome": "wrong", "message": str(error)})
    except Exception as error:  # whatever a model or a pruner raises is its outcome
        refused = isinstance(error, morphogen.MorphogenError) and steps.current in REFUSING
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if refused else f" ({Path(where.filename).name}:{where.lineno})"
        text = str(error) if refused else first_line(error)
        tell({"outcome": "refused" if refused else "failed", "message": text[:600] + place})
    else:
        tell({"outcome": "ok", "step": ""})


def prepared(name: str, steps: Steps) -> tuple[nn.Module, Any]:
    """The dense model with random weights, and what it is called with, two of each; it has been called once."""
    with steps("build"):
        x = example(name)
        model = build(name)
        shake(model)
        shapes = [list(leaf.shape) for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor)]
        steps.tell({"input": max(shapes, key=len), "parameters": parameters(model)})
    with steps("dense forward"), torch.no_grad():
        call(model.eval(), x)
    return model, x


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Reading a model, and refusing it, must leave everything that can be reached from it as it was."""
    before = picture(model)
    refusal: BaseException | None = None
    try:
        yield
    except morphogen.MorphogenError as error:
        refusal = error
    if path := difference(before, picture(model)):
        raise Wrong(f"{path} of the model is not what it was" + (f"; {first_line(refusal)}" if refusal else ""))
    if refusal is not None:
        raise refusal


def morphogen_way(name: str, options: dict[str, Any], steps: Steps) -> None:
    """Trace, narrow to half, train a step, grow back, load into the untouched class, check."""
    model, x = prepared(name, steps)
    with steps("trace"), untouched(model):
        net = morphogen.trace(model, x)
    calls = max((len(path.calls) for path in net.structure.paths), default=0)
    steps.tell({"ops": calls, "groups": len(net.groups), "stacks": len(net.stacks), **pinned(net, None)})
    with steps("plan"), untouched(model):
        half = net.subnetwork(width=options["width"])
    steps.tell(pinned(net, half))
    with steps("count FLOPs"):
        steps.tell({"flops_at_half": flops(net, half) / max(1, flops(net, net.dense))})
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    before = parameters(model)
    with steps("narrow"):
        morphogen.morph(net, half, optimizer=optimizer)
    share = parameters(model) / before
    steps.tell({"parameters_at_half": share})
    if share == 1:
        why = Counter(axis.reason for axis in net.pinned).most_common(1)
        raise NothingNarrower("nothing became narrower" + (f"; most axes: {why[0][0]}" if why else ""))
    if options["until"] == "narrow":
        return
    with steps("step at half"):
        train_step(model, x, optimizer)
    with steps("grow"):
        morphogen.morph(net, net.dense, optimizer=optimizer)
    with steps("reload"):
        checks.assert_optimizer_holds_model(model, optimizer)
        reload(name, model, x)
    del optimizer
    model.zero_grad(set_to_none=True)
    if options["check"]:
        with steps("check"):
            verdict = check(net, half, x)
        steps.tell({"check": verdict.check, "found": verdict.found, "across": verdict.across})


def flops(net: morphogen.Network, part: morphogen.SubNetwork) -> int:
    """FLOPs of one forward pass, counted without arithmetic."""
    with FlopCounterMode(display=False) as counter:  # with gradients: its hooks need them
        net.fake.run(net.sketch(part), part.resolution)
    return counter.get_total_flops()


def parameters(model: nn.Module) -> int:
    """Trained and frozen weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def pinned(net: morphogen.Network, half: morphogen.SubNetwork | None) -> dict[str, Any]:
    """How many weights of convolutions and linear layers there are, and how many keep their whole shape, and why."""
    weights = {name: layout for name, layout in net.structure.tensors.items() if layout.role.kind == "weight"}
    if half is None:
        whole = {name for name, layout in weights.items() if all(axis is None for axis in layout.axes)}
    else:
        alive = net.structure.alive_mask(half)
        whole = {name for name, layout in weights.items() if layout.alive_shape(alive) == layout.shape}
    why = Counter(axis.reason for axis in net.pinned if axis.axis.partition("[")[0] in whole)
    return {"weights": len(weights), "pinned_weights": len(whole), "pinned_why": dict(why.most_common(3))}


def train_step(model: nn.Module, x: Any, optimizer: torch.optim.Optimizer) -> None:
    """Forward, backward and one step in training mode, gradients clipped."""
    model.train()
    optimizer.zero_grad()
    backward(model, x)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def reload(name: str, model: nn.Module, x: Any) -> None:
    """Load the grown weights into an untouched instance of the class; it must compute the same."""
    model.eval()
    with torch.no_grad():
        expected = tensors_in(call(model, x))
    if not all(bool(tensor.isfinite().all()) for tensor in expected):
        raise ValueError("nothing to compare: the grown network's output is not finite")
    for meta in (True, False):  # what is not in the state may be missing on the meta device
        try:
            fresh = build(name, meta=meta)
            fresh.load_state_dict(model.state_dict(), strict=True, assign=True)
            with torch.no_grad():
                found = tensors_in(call(fresh.eval(), x))
        except (RuntimeError, NotImplementedError):  # a constructor that computes, or a tensor outside the state
            if meta:
                continue
            raise
        if len(found) == len(expected) and all(map(torch.equal, found, expected)):
            return
    raise Wrong("the untouched class computes something else with the grown network's weights")


def torch_pruning_way(name: str, options: dict[str, Any], steps: Steps) -> None:
    """Torch-Pruning without settings for the model: half of all channels but the classes, then forward and backward.

    It reads the evaluation mode, so that decides; whether the training mode runs too is told beside.
    """
    import torch_pruning

    model, x = prepared(name, steps)
    classes = {getattr(model, "num_classes", None) or (21 if "segmentation" in type(model).__module__ else 1000)}
    if not name.startswith(("timm:", "torchvision:")):  # what leaves a model may be of any size
        with torch.no_grad():
            classes = {
                size for tensor in tensors_in(call(model, x)) for size in (*tensor.shape[1:2], *tensor.shape[-1:])
            }
    heads: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in classes]
    heads = heads or [
        m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd) and m.out_channels in classes
    ]
    before = parameters(model)
    with steps("prune"):
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            x,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=1 - options["width"],
            ignored_layers=heads[-1:],
            output_transform=tensors_in,
        )
        pruner.step()
    share = parameters(model) / before
    steps.tell({"parameters_at_half": share})
    with steps("step at half"):
        torch.autograd.backward([tensor.mean() for tensor in tensors_in(call(model, x)) if tensor.requires_grad])
    steps.tell({"trains": False})
    with suppress(Exception):
        train_step(model, x, torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9))
        steps.tell({"trains": True})
    if share == 1:
        raise NothingNarrower("nothing became narrower")

"""Channel union against channel gating: FLOPs of whole networks, time of single layers (PruneTrain, Figures 6 and 7).

    python benchmarks/gating.py [--weights resnet32=runs/prune/model.pt ...] [--device cuda --batch_size 64]

Figure 6: FLOPs of inference and training, of the dense network's, for a ResNet-20 and a ResNet-32 at 32 pixels and a
ResNet-50 at 224. Planted at random: so many channels sparse in all layers of their group (the intensity), and in every
layer so many of the others sparse there alone. Union takes out the first kind, gating both. How many there are of the
second kind decides how far the two lie apart; what the group lasso makes of it is seen on the weights of a run, as
`morphogen train` saves them.

Figure 7: seconds of the last convolution of each residual block of ResNet-50 at 224 pixels, forward and backward, all
in turn: U as channel union leaves it, G with its gates, and of that the inner convolution alone.

Writes flops.png, layers.png and a line of runs.jsonl to benchmarks/results/gating. About two minutes on 2 cores.
`--clock process` counts the process's own seconds on the processor: with one thread the same as wall time where nothing
else runs, and still right where something does.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import morphogen
from morphogen.machine.timing import rounds_of
from morphogen.pruning.sparsity import sparse_part
from morphogen.report.ledger import environment
from morphogen.train.models import build_model

from channel_gating import Gated, gated

MODELS = {"resnet20": 32, "resnet32": 32, "torchvision:resnet50": 224}
"""Models and the side of their images."""
FOLDER = Path(__file__).parent / "results" / "gating"


def traced(name: str) -> morphogen.Network:
    """A network before training."""
    return morphogen.trace(build_model(name, 10), torch.randn(1, 3, MODELS[name], MODELS[name]))


def plant(net: morphogen.Network, intensity: float, own: float) -> None:
    """Set channels to zero at random: a share of each group in all layers, of the rest a share in each layer alone."""
    units = sum(group.size for group in net.groups)
    everywhere = torch.rand(units + 1) < intensity  # the last is for what is fixed
    everywhere[-1] = False
    with torch.no_grad():
        for name, layout in net.structure.tensors.items():
            for dim, axis in enumerate(layout.axes):
                if layout.role.kind == "weight" and axis is not None:
                    here = everywhere | (torch.rand(units + 1) < own)
                    here[-1] = False
                    net.model.get_parameter(name).index_fill_(dim, here[axis].nonzero().flatten(), 0.0)


def flops(model: nn.Module, side: int) -> torch.Tensor:
    """Of a forward pass, and of a forward and a backward one, for one image; nothing is computed."""
    model = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        output = model(torch.empty(1, 3, side, side, device="meta"))
        inference = counter.get_total_flops()
        output.sum().backward()
    return torch.tensor([inference, counter.get_total_flops()], dtype=torch.float64)


def shares(net: morphogen.Network, side: int) -> dict[str, float]:
    """FLOPs after channel union, and with gates on top of it, of the dense network's; morphs the network."""
    dense = flops(net.fake.blank(), side)
    morphogen.morph(net, sparse_part(net, 1e-4))
    union, gates = (flops(model, side) / dense for model in (net.model, gated(net)))
    return {
        "union inference": float(union[0]),
        "gating inference": float(gates[0]),
        "union training": float(union[1]),
        "gating training": float(gates[1]),
    }


def planted(intensities: list[float], owns: list[float]) -> list[dict]:
    """Figure 6 on planted weights."""
    rows = []
    for name, side in MODELS.items():
        for own in owns:
            for intensity in intensities:
                torch.manual_seed(0)
                net = traced(name)
                plant(net, intensity, own)
                rows.append({"model": name, "intensity": intensity, "own": own, **shares(net, side)})
    return rows


def of_run(text: str) -> dict:
    """Figure 6 on the weights of a run, `MODEL=FILE`; its reconfigurations so far are in the union."""
    name, _, file = text.partition("=")
    content = torch.load(file, map_location="cpu", weights_only=True)
    net = traced(name)
    morphogen.morph(net, morphogen.SubNetwork.from_json(content["subnetwork"]))
    net.model.load_state_dict(content["state_dict"])
    return {"model": name, "weights": Path(file).name, **shares(net, MODELS[name])}


def layer_times(options: argparse.Namespace) -> list[dict]:
    """Figure 7: for the last convolution of each block, medians in seconds of union, gating and its convolution."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    net = traced("torchvision:resnet50")
    plant(net, options.intensity, options.own)
    morphogen.morph(net, sparse_part(net, 1e-4))
    union, other = net.model.to(device), gated(net).to(device)
    names = [name for name, _ in union.named_modules() if name.endswith("conv3")]
    shapes: dict[str, torch.Size] = {}
    for name in names:
        union.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: shapes.__setitem__(name, inputs[0].shape[1:])
        )
    with torch.no_grad():
        union.eval()(torch.zeros(1, 3, 224, 224, device=device))
    memory_format = getattr(torch, options.memory_format)
    pieces: list[Callable[[], None]] = []
    for name in names:
        x = torch.randn(options.batch_size, *shapes[name], device=device).contiguous(memory_format=memory_format)
        gate = other.get_submodule(name)
        inner, dense = gate, x  # where by chance nothing is sparse
        if isinstance(gate, Gated):
            inner = gate.layer
            if gate.inputs is not None:
                dense = x.index_select(1, gate.inputs).contiguous(memory_format=memory_format)
        for layer, images in ((union.get_submodule(name), x), (gate, x), (inner, dense)):
            pieces.append(training_pass(layer.to(memory_format=memory_format), images))
    medians = [statistics.median(times) for times in rounds_of(pieces, device, options.seconds)]
    triples = zip(medians[::3], medians[1::3], medians[2::3], strict=True)
    return [
        {"layer": name, "union": union_, "gating": gating, "convolution of gating": inner}
        for name, (union_, gating, inner) in zip(names, triples, strict=True)
    ]


def training_pass(layer: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of a layer, for its weights and its images."""
    images = images.requires_grad_()
    output = layer(images)
    slope = torch.randn_like(output)
    wanted = [images, *layer.parameters()]

    def run() -> None:
        torch.autograd.grad(layer(images), wanted, slope)

    return run


def draw_flops(rows: list[dict], runs: list[dict], path: Path) -> None:
    """Figure 6: a panel for each model, inference above training, a pair of lines for each share of own channels."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, len(MODELS), sharex=True, sharey=True)
    owns = sorted({row["own"] for row in rows})
    for column, name in enumerate(MODELS):
        for line, phase in enumerate(("inference", "training")):
            axes = panels[line, column]
            for i, own in enumerate(owns):
                mine = [row for row in rows if row["model"] == name and row["own"] == own]
                x = [row["intensity"] for row in mine]
                kinds = (("union", "-", "o"), ("gating", "--", "x"))
                for kind, style, marker in kinds:
                    y = [row[f"{kind} {phase}"] for row in mine]
                    label = f"{kind}, {own:.0%} more in each layer"
                    axes.plot(x, y, style, marker=marker, color=f"C{i}", markersize=4, label=label)
            for run in (run for run in runs if run["model"] == name):
                for kind, style in (("union", "-"), ("gating", "--")):
                    y = run[f"{kind} {phase}"]
                    axes.axhline(y, linestyle=style, color="black", linewidth=1, label=f"{kind}, {run['weights']}")
            axes.set_title(f"{name}, {phase}", fontsize=9)
            axes.grid(alpha=0.3)
    for axes in panels[1]:
        axes.set_xlabel("share of channels sparse in all layers")
    for axes in panels[:, 0]:
        axes.set_ylabel("FLOPs, of dense")
    panels[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=130)


def draw_layers(rows: list[dict], title: str, path: Path) -> None:
    """Figure 7: two bars a layer, of G's the convolution apart from select and scatter."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots()
    x = torch.arange(len(rows))
    union, gating, inner = (
        torch.tensor([1000 * row[key] for row in rows]) for key in ("union", "gating", "convolution of gating")
    )
    axes.bar(x - 0.2, union, 0.38, color="C0", label="U: convolution")
    axes.bar(x + 0.2, inner, 0.38, color="C1", label="G: convolution")
    axes.bar(x + 0.2, gating - inner, 0.38, bottom=inner, color="C3", label="G: select and scatter")
    axes.set_xticks(x, [row["layer"].removesuffix(".conv3") for row in rows], rotation=45, fontsize=8)
    axes.set_ylabel("forward and backward (ms)")
    axes.set_title(title, fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", nargs="*", default=[], help="MODEL=FILE: a model of Figure 6, a run with 10 classes"
    )
    parser.add_argument("--intensities", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6])
    parser.add_argument("--owns", type=float, nargs="+", default=[0.02, 0.05, 0.2])
    parser.add_argument("--intensity", type=float, default=0.3, help="of Figure 7")
    parser.add_argument("--own", type=float, default=0.05, help="of Figure 7")
    parser.add_argument("--batch_size", type=int, default=8, help="of Figure 7")
    parser.add_argument("--seconds", type=float, default=45.0, help="of measuring; three rounds at least")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory_format", choices=("contiguous_format", "channels_last"), default="contiguous_format")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall")
    options = parser.parse_args()
    if options.clock == "process":
        time.perf_counter = time.process_time
    FOLDER.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    rows, runs = planted(options.intensities, options.owns), [of_run(text) for text in options.weights]
    for row in rows + runs:
        print(*(f"{key} {value:.3f}" if isinstance(value, float) else value for key, value in row.items()), sep="  ")
    draw_flops(rows, runs, FOLDER / "flops.png")
    layers = layer_times(options)
    for row in layers:
        print(f"{row['layer']:>16}", *(f"{key} {1000 * row[key]:.2f} ms" for key in list(row)[1:]), sep="  ")
    totals = {key: sum(row[key] for row in layers) for key in ("union", "gating")}
    print(f"all of them: gating takes {totals['gating'] / totals['union']:.2f} of union")
    where = environment(torch.device(options.device))
    title = (
        f"ResNet-50, batch {options.batch_size}, {options.memory_format}, {where['device']}, {where['threads']} threads"
    )
    draw_layers(layers, title, FOLDER / "layers.png")
    settings = {key: value for key, value in vars(options).items() if key != "weights"}
    record = {"flops": rows, "runs": runs, "layers": layers, **settings, "load before": load}
    record |= {"load after": os.getloadavg()[0], "environment": where}
    with open(FOLDER / "runs.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

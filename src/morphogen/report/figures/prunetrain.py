"""PruneTrain (Lym et al., SC 2019): Figures 2, 4, 6 and 8 to 12. Figure 7 times single layers: benchmarks/gating.py."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...spec import parse_call
from ..page.series import DENSE
from ..records import Record, by_method, measured
from ..savings.density import draw_density
from ..savings.over_epochs import draw_communication, draw_flops, draw_memory
from ..savings.shares import (
    at_the_end,
    epochs_of,
    flops_of_a_step,
    images_of,
    modelled_runs,
    over_training,
    pruned_runs,
)
from ..savings.sparsity_map import draw_sparsity
from .figure import MARKERS, PaperFigure, bare, colour, mean_of, new_figure, save, some, subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASES = (0.0, 0.5, 0.75, 1.0)
"""Where the paper's learning rate falls: epochs 91 and 136 of 182."""

HATCHES = ("", "//", "..")

PRUNED = "runs of a method that prunes"


def shares_of_epochs(run: Record) -> list[float]:
    """FLOPs of a step in each epoch, of the dense network's."""
    ends = epochs_of(run)
    spans = zip(flops_of_a_step(run), ends, ends[1:], strict=False)
    return [share for share, start, end in spans for _ in range(start, end)]


def pruned_in_phases(run: Record) -> list[float]:
    """By how much the FLOPs of a step fell in each phase, of the dense network's (Figure 2b)."""
    shares = [1.0, *shares_of_epochs(run)]  # what the dense network needs stands before the first epoch
    ends = [round(phase * (len(shares) - 1)) for phase in PHASES]
    return [shares[start] - shares[end] for start, end in itertools.pairwise(ends)]


def one_time_overhead(run: Record) -> list[float]:
    """Training FLOPs of one reconfiguration before each epoch, above those of the run, as a share of them.

    As the paper has it, the network that is left is the one that the run had in that epoch: the lasso makes the same
    channels sparse whether or not they are taken out.
    """
    shares = shares_of_epochs(run)
    whole, length = sum(shares), len(shares)
    return [(epoch + (length - epoch) * share) / whole - 1 for epoch, share in enumerate(shares)]


def gated_inference(run: Record) -> float:
    """FLOPs of inference with channel gating, of the dense network's (Figure 6)."""
    return at_the_end(run, "inference_flops") * run["stages"][-1]["gated"]


def gated_training(run: Record) -> float:
    """FLOPs of training with channel gating: each stage's, less what gates spare of its forward pass."""
    dense = run["pruned"]["dense"]
    whole = dense["training_flops"] * images_of(dense) / dense["batch_size"]
    stages = [(stage, images_of(stage) / stage["batch_size"]) for stage in run["stages"]]
    return sum(stage["training_flops"] * steps * stage["gated"] for stage, steps in stages) / whole


def shrinking(records: Sequence[Record]) -> list[Record]:
    """The runs that prune and never grow."""
    shares = [(run, [1.0, *shares_of_epochs(run)]) for run in pruned_runs(records)]
    return [run for run, each in shares if all(after <= before + 1e-9 for before, after in itertools.pairwise(each))]


def draw_breakdown(records: Sequence[Record], path: Path) -> None:
    """Figure 2b: a bar a method, a piece a phase."""
    methods = by_method(some(shrinking(records), PRUNED))
    means = [
        [100 * statistics.fmean(of_phase) for of_phase in zip(*map(pruned_in_phases, runs), strict=True)]
        for runs in methods.values()
    ]
    figure, axes = _bars(methods)
    left = [0.0] * len(methods)
    for phase, (start, end) in enumerate(itertools.pairwise(PHASES)):
        wide = [each[phase] for each in means]
        label = f"{100 * start:.0f} to {100 * end:.0f} % of the epochs"
        axes.barh(range(len(methods)), wide, left=left, color=colour(phase), hatch=HATCHES[phase], label=label)
        left = [before + each for before, each in zip(left, wide, strict=True)]
    axes.set_xlabel("FLOPs of a step pruned, % of dense")
    axes.set_title(subject(records), fontsize=9)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    save(figure, path)


def draw_one_time(records: Sequence[Record], path: Path) -> None:
    """Figure 2c: what one reconfiguration costs more, by its moment; one line a method, its first run."""
    runs = [of_method[0] for of_method in by_method(some(shrinking(records), PRUNED)).values()]
    figure, [axes] = new_figure(height=3.8 + 0.15 * len(runs))
    for number, run in enumerate(runs):
        overhead = [100 * each for each in one_time_overhead(run)]
        best = min(range(len(overhead)), key=lambda epoch, overhead=overhead: overhead[epoch])
        look = MARKERS[number % len(MARKERS)]
        label = f"{run['method']}: at best {abs(overhead[best]):.0f} % more"
        axes.plot(overhead, color=colour(number), label=label)
        axes.plot([best], [overhead[best]], color=colour(number), marker=look, linestyle="none")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch of the one reconfiguration")
    axes.set_ylabel("training FLOPs above the run's (%)")
    axes.set_title(subject(records), fontsize=9)
    figure.legend(fontsize=7, loc="outside lower center")
    save(figure, path)


def draw_gating(records: Sequence[Record], path: Path) -> None:
    """Figure 6: FLOPs of training and inference by channel union, and what gating would leave of them."""
    known = [run for run in pruned_runs(records) if all(stage.get("gated") is not None for stage in run["stages"])]
    methods = by_method(some(known, f"{PRUNED}, of this version"))
    bars: dict[str, Callable[[Record], float | None]] = {
        "training, union": lambda run: over_training(run, "training_flops"),
        "training, gating": gated_training,
        "inference, union": lambda run: at_the_end(run, "inference_flops"),
        "inference, gating": gated_inference,
    }
    figure, axes = _bars(methods)
    for number, (label, share) in enumerate(bars.items()):
        wide = [100 * statistics.fmean(share(run) or 0.0 for run in runs) for runs in methods.values()]
        places = [place + 0.2 * (number - 1.5) for place in range(len(methods))]
        axes.barh(places, wide, 0.2, color=colour(number // 2), hatch=HATCHES[number % 2], label=label)
    axes.set_xlabel("FLOPs, % of dense")
    axes.set_title(subject(records), fontsize=9)
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    save(figure, path)


def draw_accuracy_by_cost(records: Sequence[Record], path: Path) -> None:
    """Figure 8: accuracy against FLOPs of inference and training, and bytes of normalisation; dense a triangle."""
    methods = by_method(some(pruned_runs(records), f"{PRUNED}, of several ratios"))
    groups: dict[str, dict[str, list[Record]]] = {}
    for method, runs in methods.items():
        groups.setdefault(bare(method), {})[method] = runs
    costs: dict[str, Callable[[Record], float | None]] = {
        "inference FLOPs": lambda run: at_the_end(run, "inference_flops"),
        "training FLOPs": lambda run: over_training(run, "training_flops"),
        "normalisation bytes": lambda run: over_training(run, "normalisation"),
    }
    figure, panels = new_figure(len(costs), width=4.0)
    for axes, (what, cost) in zip(panels, costs.items(), strict=True):
        for number, (name, each) in enumerate(groups.items()):
            _points(axes, each.values(), cost, name, number)
        _dense(axes, records)
        axes.set_xlabel(f"{what}, % of dense")
    panels[0].set_ylabel(f"test {measured(records)} (%)")
    panels[0].legend(fontsize=8)
    figure.suptitle(subject(records), fontsize=9)
    save(figure, path)


def draw_intervals(records: Sequence[Record], path: Path) -> None:
    """Figure 10: accuracy against FLOPs of inference, one line a reconfiguration interval."""
    groups: dict[str, list[list[Record]]] = {}
    for method, runs in by_method(some(pruned_runs(records), PRUNED)).items():
        try:
            name, settings = parse_call(method)
        except ConfigError:  # a sum of methods
            continue
        if name == "PruneTrain":
            groups.setdefault(f"every {settings.get('interval', 'default')} epochs", []).append(runs)
    if not groups:
        raise ConfigError("no run is of PruneTrain alone", expected="PruneTrain(interval=...) of several intervals")
    figure, [axes] = new_figure()
    for number, (label, each) in enumerate(groups.items()):
        _points(axes, each, lambda run: at_the_end(run, "inference_flops"), label, number)
    _dense(axes, records)
    axes.set_xlabel("inference FLOPs, % of dense")
    axes.set_ylabel(f"test {measured(records)} (%)")
    axes.set_title(subject(records), fontsize=9)
    axes.legend(fontsize=8)
    save(figure, path)


def _points(axes: Axes, groups, cost: Callable[[Record], float | None], label: str, number: int) -> None:
    """A point a method, joined in the order of their cost."""
    found = sorted(
        (mean_of(runs, lambda run: 100 * (cost(run) or 0.0))[0], *mean_of(runs, "accuracy")) for runs in groups
    )
    xs, ys, spreads = (list(column) for column in zip(*found, strict=True))
    look = MARKERS[number % len(MARKERS)]
    axes.errorbar(xs, ys, yerr=spreads, color=colour(number), marker=look, capsize=3, label=label)


def _dense(axes: Axes, records: Sequence[Record]) -> None:
    dense = by_method(records).get(DENSE)
    if dense is not None:
        accuracy, spread = mean_of(dense, "accuracy")
        axes.errorbar([100], [accuracy], yerr=[spread], color="k", marker="^", capsize=3, linestyle="none", label=DENSE)


def _bars(methods: Sequence[str] | dict[str, list[Record]]) -> tuple[Figure, Axes]:
    """An empty chart with a row for each method, the first on top."""
    figure, [axes] = new_figure(width=8, height=1.6 + 0.5 * len(methods))
    axes.set_yticks(range(len(methods)), list(methods), fontsize=8)
    axes.invert_yaxis()
    return figure, axes


def _over(
    draw: Callable[[Sequence[Record], Path], None], choose: Callable[[Sequence[Record]], list[Record]], what: str
):
    def drawn(records: Sequence[Record], path: Path) -> None:
        draw(some(choose(records), what), path)

    return drawn


def _mapped(records: Sequence[Record], path: Path) -> None:
    draw_sparsity(some([run for run in pruned_runs(records) if run["pruned"]["sparsity"]], PRUNED)[0], path)


RATIOS = "one `compare` of several ratios, such as PruneTrain(ratio=0.1) and (ratio=0.2)"

FIGURES = (
    PaperFigure("prunetrain/2a", "FLOPs of a step over the epochs", RATIOS, _over(draw_flops, pruned_runs, PRUNED)),
    PaperFigure("prunetrain/2b", "in which phase the FLOPs were pruned", RATIOS, draw_breakdown),
    PaperFigure("prunetrain/2c", "cost of pruning once, by its moment", RATIOS, draw_one_time),
    PaperFigure(
        "prunetrain/4", "channels that became sparse", "one run that prunes; the first that has a map", _mapped
    ),
    PaperFigure("prunetrain/6", "FLOPs by channel union and by gating", RATIOS, draw_gating),
    PaperFigure(
        "prunetrain/8", "accuracy by cost of inference and training", f"{RATIOS}, and SSL", draw_accuracy_by_cost
    ),
    PaperFigure(
        "prunetrain/9",
        "memory of a step, and the batch",
        "runs that prune or change the batch",
        _over(draw_memory, modelled_runs, "runs that prune, or of DynamicBatch"),
    ),
    PaperFigure(
        "prunetrain/10", "reconfiguration intervals", "one `compare` of several intervals and ratios", draw_intervals
    ),
    PaperFigure("prunetrain/11", "bytes of the all-reduce", RATIOS, _over(draw_communication, pruned_runs, PRUNED)),
    PaperFigure("prunetrain/12", "density of each layer", "runs that prune", _over(draw_density, pruned_runs, PRUNED)),
)

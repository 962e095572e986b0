"""Network Expansion (Ding et al., CVPR 2023): Figures 4, 5 and 6."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..page.series import DENSE
from ..records import Record, by_method, measured
from ..render import draw_accuracy
from .figure import MARKERS, PaperFigure, bare, colour, mean_of, methods_of, new_figure, save, some, subject


def draw_tradeoff(records: Sequence[Record], path: Path) -> None:
    """Accuracy against acceleration, a point a method: mean and standard deviation over the seeds."""
    methods, dense = methods_of(records), by_method(records).get(DENSE)
    if dense is None or not methods:
        raise ConfigError("a trade-off is against dense training", expected="Dense runs and at least one method")
    whole, (accuracy, spread) = mean_of(dense, "training_seconds")[0], mean_of(dense, "accuracy")
    figure, [axes] = new_figure()
    axes.axhline(accuracy, color="gray", linestyle="--", linewidth=1)
    axes.errorbar([1], [accuracy], yerr=[spread], color="k", marker="^", capsize=3, linestyle="none", label=DENSE)
    for number, name in enumerate(dict.fromkeys(map(bare, methods))):
        points = sorted(
            (whole / mean_of(runs, "training_seconds")[0], *mean_of(runs, "accuracy"), method)
            for method, runs in methods.items()
            if bare(method) == name
        )
        xs, ys, spreads, labels = (list(column) for column in zip(*points, strict=True))
        look: dict[str, Any] = {"color": colour(number), "marker": MARKERS[number % len(MARKERS)]}
        axes.errorbar(xs, ys, yerr=spreads, capsize=3, label=name, **look)
        for x, y, label in zip(xs, ys, labels, strict=True):
            settings = label.partition("(")[2].rstrip(")")
            axes.annotate(settings, (x, y), textcoords="offset points", xytext=(5, 5), fontsize=7)
    axes.set_xlabel("acceleration (dense time by the method's)")
    axes.set_ylabel(f"test {measured(records)} (%)")
    axes.set_title(subject(records), fontsize=9)
    axes.legend(fontsize=8)
    save(figure, path)


def correlated(records: Sequence[Record]) -> list[tuple[Record, dict[str, Any]]]:
    """For each method its first run's first growth of which the correlations are known."""
    found = []
    for runs in methods_of(records).values():
        morphs = [(run, morph) for run in runs for morph in run["morphs"] if morph.get("correlations")]
        found += morphs[:1]
    return found


def between(correlations: dict[str, Any]) -> float:
    """Mean over the new channels of the largest |r| with an old one: 1 where each is a copy of an old one."""
    old = [n for n, new in enumerate(correlations["new"]) if not new]
    fresh = [n for n, new in enumerate(correlations["new"]) if new]
    return statistics.fmean(max(abs(float(correlations["matrix"][n][k])) for k in old) for n in fresh)


def draw_correlations(records: Sequence[Record], path: Path) -> None:
    """Pearson's correlations between the feature maps of a layer right after it has grown, a panel a method."""
    from matplotlib.ticker import MaxNLocator

    found = correlated(records)
    if not found:
        raise ConfigError("no run has grown in width", expected="runs of a method that widens convolutions")
    figure, panels = new_figure(len(found), width=4.4, height=4.4)
    image = None
    for axes, (run, morph) in zip(panels, found, strict=True):
        correlations = morph["correlations"]
        old = correlations["new"].count(False)
        image = axes.imshow(correlations["matrix"], vmin=-1, vmax=1, cmap="PuOr", interpolation="nearest")
        axes.grid(visible=False)
        axes.axhline(old - 0.5, color="k", linewidth=0.8)
        axes.axvline(old - 0.5, color="k", linewidth=0.8)
        told = f"{correlations['layer']}, before epoch {morph['epoch'] + 1}: {old} old channels, then the new"
        axes.set_title(f"{run['method']}\n{told}\nnew to old, largest |r|: {between(correlations):.2f}", fontsize=8)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    assert image is not None
    figure.colorbar(image, ax=panels, label="Pearson's r between feature maps of one test image")
    save(figure, path)


def draw_times(records: Sequence[Record], path: Path) -> None:
    """Test accuracy against training time, one line a run."""
    draw_accuracy(some(records, "finished runs"), path)


FIGURES = (
    PaperFigure("network-expansion/4", "accuracy against wall time", "one `compare`, or several `train`", draw_times),
    PaperFigure(
        "network-expansion/5",
        "trade-off of acceleration and accuracy",
        "one `compare` of several widths, such as NetworkExpansion(width=0.25) to (width=0.75)",
        draw_tradeoff,
    ),
    PaperFigure(
        "network-expansion/6",
        "correlations of feature maps right after growth",
        "one `compare` of operators, such as NetworkExpansion(operator='replicate') and 'orthogonal'",
        draw_correlations,
    ),
)

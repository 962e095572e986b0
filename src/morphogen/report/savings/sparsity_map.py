"""Which channels became sparse, and when (PruneTrain, Figure 4)."""

from __future__ import annotations

from pathlib import Path

from ..records import Record


def draw_sparsity(run: Record, path: Path) -> None:
    """The largest absolute weight of every output channel over the epochs, one panel a layer.

    White is below the run's threshold, or taken out.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    layers, threshold = run["pruned"]["sparsity"], run["pruned"]["threshold"]
    largest = max(figure for epochs in layers.values() for epoch in epochs for figure in epoch)
    colours = ScalarMappable(LogNorm(threshold, max(largest, 10 * threshold)), "viridis_r")
    figure = Figure(figsize=(4 * len(layers) + 1, 4), layout="constrained")
    panels = figure.subplots(1, len(layers), squeeze=False)[0]
    for axes, (layer, epochs) in zip(panels, layers.items(), strict=True):
        # A row a channel, a column an epoch; NaN is drawn white.
        cells = [[each if each >= threshold else float("nan") for each in row] for row in zip(*epochs, strict=True)]
        axes.imshow(cells, norm=colours.norm, cmap=colours.cmap, aspect="auto", interpolation="nearest", origin="lower")
        axes.set_title(layer, fontsize=9)
        axes.set_xlabel("epoch")
        axes.set_ylabel("output channel")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(colours, ax=list(panels), label=f"largest |weight| (white: below {threshold:g} or removed)")
    figure.suptitle(f"{run['method']}, {run['model']} on {run['data']}, seed {run['seed']}", fontsize=9)
    figure.savefig(path, dpi=130)

"""What searches saw and chose: tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def search_rows(search: Record) -> list[dict[str, str]]:
    """One row a candidate of a search (`Found.record`): its size, loss, time, score, and whether it was chosen."""
    return [
        {
            "blocks": str(candidate["blocks"]),
            "resolution": _size(candidate["resolution"]),
            "loss": "not finite: dropped" if candidate["loss"] is None else f"{candidate['loss']:.4f}",
            "fitted": "" if candidate["fitted"] is None else f"{candidate['fitted']:.4f}",
            "ms": f"{1000 * candidate['seconds']:.1f}",
            "score": "" if candidate["score"] is None else f"{candidate['score']:.4f}",
            "error": f"{candidate['error']:.4f}",
            "chosen": "yes" if number == search["chosen"] else "",
        }
        for number, candidate in enumerate(search["candidates"])
    ]


def search_title(search: Record) -> str:
    """What a table of candidates is headed by."""
    return f"search before epoch {search['epoch']}: loss x time^{search['exponent']:.3f}, {search['seconds']:.1f} s"


def draw_searches(searches: Sequence[Record], path: Path) -> None:
    """Loss against time of every candidate, one panel a search; the line joins equal scores, the best is a star."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(searches), 3.6), layout="constrained")
    panels = figure.subplots(1, len(searches), squeeze=False)[0]
    for axes, search in zip(panels, searches, strict=True):
        finite = [c for c in search["candidates"] if c["loss"] is not None]
        best = search["candidates"][search["chosen"]]
        sizes = sorted({_size(c["resolution"]) for c in finite}, key=lambda size: (len(size), size))
        for number, size in enumerate(sizes):
            of_size = [c for c in finite if _size(c["resolution"]) == size]
            axes.scatter(
                [1000 * c["seconds"] for c in of_size], [c["loss"] for c in of_size], color=f"C{number}", label=size
            )
            for c in of_size:
                axes.annotate(
                    str(c["blocks"]),
                    (1000 * c["seconds"], c["loss"]),
                    textcoords="offset points",
                    xytext=(4, 3),
                    fontsize=7,
                )
        axes.scatter([1000 * best["seconds"]], [best["loss"]], marker="*", s=180, facecolor="none", edgecolor="k")
        times = sorted(c["seconds"] for c in finite)
        steps = [times[0] + (times[-1] - times[0]) * i / 50 for i in range(51)]
        axes.plot([1000 * t for t in steps], [best["score"] / t ** search["exponent"] for t in steps], "k:", lw=1)
        axes.set_title(f"before epoch {search['epoch']}, exponent {search['exponent']:.3f}", fontsize=9)
        axes.set_xlabel("training step (ms)")
        axes.set_ylabel("loss on the subset")
        axes.grid(alpha=0.3)
        axes.legend(title="input", fontsize=7, title_fontsize=7)
    figure.savefig(path, dpi=130)


def _size(resolution: Sequence[int] | None) -> str:
    return "" if resolution is None else " x ".join(map(str, resolution))

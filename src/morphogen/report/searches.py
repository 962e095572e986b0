"""What searches saw and chose: tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def search_rows(search: Record) -> list[dict[str, str]]:
    """One row a candidate of a search (`Found.record`): its size, loss, time, score, and whether it was chosen.

    Of a search without training: how many of the layers train, both proxies, FLOPs and score.
    """
    if is_without_training(search):
        return [
            {
                "share trained": f"{zero['share']:g}",
                "NTK condition number": _rounded(zero["condition"], ",.1f"),
                "ZiCo": _rounded(zero["zico"], ".2f"),
                "MFLOPs an image": f"{zero['flops'] / 1e6:,.1f}",
                "proxies": _rounded(candidate["loss"], ".4f"),
                "score": _rounded(candidate["score"], ".4g"),
                "chosen": "yes" if number == search["chosen"] else "",
            }
            for number, candidate in enumerate(search["candidates"])
            for zero in [candidate["zero_cost"]]
        ]
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
    what = "proxies x FLOPs" if is_without_training(search) else "loss x time"
    return f"search before epoch {search['epoch'] + 1}: {what}^{search['exponent']:.3f}, {search['seconds']:.1f} s"


def is_without_training(search: Record) -> bool:
    """Whether a search compared its candidates by what tells without training."""
    return all("zero_cost" in candidate for candidate in search["candidates"])


def point_of(candidate: Record) -> tuple[float, str]:
    """What a step of a candidate costs, in ms or MFLOPs, and in a word what it is: its blocks, or the share trained."""
    zero = candidate.get("zero_cost")
    if zero is None:
        return 1000 * candidate["seconds"], str(candidate["blocks"])
    return zero["flops"] / 1e6, f"{zero['share']:g}"


def axes_of(search: Record) -> tuple[str, str]:
    """What a picture of a search has along its axes."""
    if is_without_training(search):
        return "training step (MFLOPs an image)", "proxies: trainability and convergence"
    return "training step (ms)", "loss on the subset"


def _rounded(value: float | None, style: str) -> str:
    return "not finite" if value is None else format(value, style)


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
                [point_of(c)[0] for c in of_size], [c["loss"] for c in of_size], color=f"C{number}", label=size
            )
            for c in of_size:
                axes.annotate(
                    point_of(c)[1],
                    (point_of(c)[0], c["loss"]),
                    textcoords="offset points",
                    xytext=(4, 3),
                    fontsize=7,
                )
        axes.scatter([point_of(best)[0]], [best["loss"]], marker="*", s=180, facecolor="none", edgecolor="k")
        times = sorted(point_of(c)[0] for c in finite)
        steps = [times[0] + (times[-1] - times[0]) * i / 50 for i in range(51)]
        at, exponent = point_of(best)[0], search["exponent"]
        axes.plot(steps, [best["fitted"] * (at / t) ** exponent for t in steps], "k:", lw=1)
        axes.set_title(f"before epoch {search['epoch'] + 1}, exponent {search['exponent']:.3f}", fontsize=9)
        axes.set_xlabel(axes_of(search)[0])
        axes.set_ylabel(axes_of(search)[1])
        axes.grid(alpha=0.3)
        axes.legend(title="input", fontsize=7, title_fontsize=7)
    figure.savefig(path, dpi=130)


def _size(resolution: Sequence[int] | None) -> str:
    return "" if resolution is None else " x ".join(map(str, resolution))

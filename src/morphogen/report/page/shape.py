"""The network's shape over a run: width by group, depth, resolution, and what each change did to the accuracy."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from ...dense.subnet import SubNetwork
from ..records import Record
from .chart import Chart
from .elements import details, el, table
from .heat import heat_map, level_of

MOST_ROWS = 80
"""Groups with a row of their own."""

MOST_CHANGES = 12
"""Changes of size that are shown at once."""


@dataclass(frozen=True)
class Shape:
    """The sub-networks of a run.

    Attributes:
        starts: the epoch in which each begins; one that is the run's length was left behind training.
        stages: the sub-networks.
        dense: for each channel group and block stack its size in the dense network; of records that do not say, the
            largest in the run.
        resolution: of the dense network's input, likewise.
        epochs: the run's length.
    """

    starts: list[int]
    stages: list[SubNetwork]
    dense: dict[str, int]
    resolution: tuple[int, int] | None
    epochs: int

    @staticmethod
    def of(record: Record) -> Shape | None:
        """None where the record has no history.

        Raises:
            SubNetworkError: it does not describe sub-networks.
        """
        history = record.get("history") or []
        if not history:
            return None
        stages = list(SubNetwork.from_dicts([each["subnetwork"] for each in history]))
        whole = [SubNetwork.from_dict(record["dense"])] if record.get("dense") else stages
        sizes = {
            name: max(len(_parts(each).get(name, ())) for each in whole) for each in whole for name in _parts(each)
        }
        sides = [each.resolution for each in whole if each.resolution is not None]
        starts = [int(each["epoch"]) for each in history]
        if starts != sorted(set(starts)):
            raise ValueError("stages that are not in order")
        return Shape(starts, stages, sizes, max(sides, default=None), record["epochs"][-1]["epoch"] + 1)

    @property
    def changes(self) -> bool:
        """Whether the network ever has another size than the dense one."""
        return len(self.stages) > 1 or any(self.share(0, name) < 1 for name in self.dense) or self.size(0) < 1

    def share(self, stage: int, name: str) -> float:
        """What of a group or a stack is alive."""
        return len(_parts(self.stages[stage]).get(name, ())) / max(1, self.dense[name])

    def width(self, stage: int) -> float:
        """Mean over the channel groups."""
        return (
            statistics.fmean(self.share(stage, name) for name in self.stages[0].channels)
            if self.stages[0].channels
            else 1
        )

    def depth(self, stage: int) -> float:
        """Blocks that are alive, of all that can leave."""
        blocks = self.stages[stage].blocks
        whole = sum(self.dense[name] for name in blocks)
        return sum(map(len, blocks.values())) / whole if whole else 1.0

    def size(self, stage: int) -> float:
        """Height of the input, of the dense network's."""
        ours = self.stages[stage].resolution
        return 1.0 if ours is None or self.resolution is None else ours[0] / self.resolution[0]

    def at(self, epoch: int) -> int:
        """The stage that an epoch is in."""
        return max((n for n, start in enumerate(self.starts) if start <= epoch), default=0)


def _parts(subnetwork: SubNetwork) -> dict[str, tuple[int, ...]]:
    return {**subnetwork.channels, **subnetwork.blocks}


def draw_shape(record: Record, shape: Shape) -> Element:
    """The heat map of widths, and lines of depth, width, resolution and FLOPs."""
    moves = any(shape.share(stage, name) < 1 for stage in range(len(shape.stages)) for name in shape.dense)
    return el("div", _widths(shape) if moves else None, _shares(record, shape), class_="grid")


def _widths(shape: Shape) -> Element:
    names = [*shape.stages[0].blocks, *shape.stages[0].channels]
    ends = [*shape.starts[1:], shape.epochs]
    rows = [
        [
            (start, min(end, shape.epochs), level_of(shape.share(stage, name)))
            for stage, (start, end) in enumerate(zip(shape.starts, ends, strict=True))
            if start < shape.epochs
        ]
        for name in names[:MOST_ROWS]
    ]
    left_out = f" {len(names) - MOST_ROWS} more groups are left out." if len(names) > MOST_ROWS else ""
    labels = [f"{name}: {shape.dense[name]}" for name in names[:MOST_ROWS]]
    stacks = "Block stacks come first. " if shape.stages[0].blocks else ""
    return heat_map(
        "Width by channel group",
        labels,
        rows,
        shape.epochs,
        f"Strength is the share that is alive of the dense network's channels, whose number is beside the name, in "
        f"steps of a tenth. {stacks}{left_out}".strip(),
    )


def _shares(record: Record, shape: Shape) -> Element:
    stages = [stage for stage in record["stages"] if stage["epoch"] < shape.epochs]
    of_an_image = [(stage["epoch"], stage["training_flops"] / stage["batch_size"]) for stage in stages]
    known = (record.get("pruned") or {}).get("dense")
    whole = known["training_flops"] / known["batch_size"] if known else max(flops for _, flops in of_an_image)
    trained = [(n, start) for n, start in enumerate(shape.starts) if start < shape.epochs]
    lines = {
        "width, mean": [(float(start), 100 * shape.width(n)) for n, start in trained],
        "depth": [(float(start), 100 * shape.depth(n)) for n, start in trained],
        "resolution": [(float(start), 100 * shape.size(n)) for n, start in trained],
        "FLOPs of an image": [(float(start), 100 * flops / max(1, whole)) for start, flops in of_an_image],
    }
    still = [name for name, line in lines.items() if {round(y, 6) for _, y in line} == {100.0}]
    lines = {name: line for name, line in lines.items() if name not in still} or lines
    chart = Chart(
        "Depth, width, resolution",
        ("epoch", [0.0, float(shape.epochs)]),
        ("% of dense", [0.0, 100.0, *(y for line in lines.values() for _, y in line)]),
        labels=list(lines),
    )
    for number, (name, points) in enumerate(lines.items()):
        chart.steps(points, shape.epochs, f"s{number} d{number}")
        chart.label(shape.epochs, points[-1][1], name, f"s{number}")
    whole = f" As in the dense network all the time: {', '.join(still)}." if still else ""
    search = " A search is drawn at its largest candidate, its FLOPs at the mean." if record.get("searches") else ""
    return chart.element(f"Shares of the dense network's.{whole}{search}")


def change_rows(record: Record, shape: Shape | None) -> list[dict[str, str]]:
    """One row a change of size: what changed, and the accuracy before and right after."""
    rows = []
    for morph in record["morphs"]:
        lost = morph["accuracy_after"] - morph["accuracy_before"]
        rows.append(
            {
                "before epoch": str(morph["epoch"]),
                "what": _what(shape, morph["epoch"]) if shape else "",
                "accuracy before %": f"{morph['accuracy_before']:.2f}",
                "right after %": f"{morph['accuracy_after']:.2f}",
                "points": f"{lost:+.2f}",
                "seconds": f"{morph['seconds']:.2f}",
            }
        )
    return rows


def _what(shape: Shape, epoch: int) -> str:
    new, told = shape.at(epoch), list[str]()
    if not new or shape.starts[new] != epoch:
        return ""
    before, after = shape.stages[new - 1], shape.stages[new]
    if before.channels != after.channels:
        told.append("{:,} → {:,} channels".format(*(sum(map(len, each.channels.values())) for each in (before, after))))
    if before.blocks != after.blocks:
        told.append("{} → {} blocks".format(*(sum(map(len, each.blocks.values())) for each in (before, after))))
    if before.resolution != after.resolution:
        told.append(f"input {_sides(before)} → {_sides(after)}")
    return ", ".join(told)


def _sides(subnetwork: SubNetwork) -> str:
    return "" if subnetwork.resolution is None else " x ".join(map(str, subnetwork.resolution))


def stage_rows(record: Record) -> list[dict[str, str]]:
    """One row a stage: what it is, and what a step of it costs."""
    return [
        {
            "from epoch": f"{stage['epoch']}{' (search)' if stage.get('searching') else ''}",
            "input": " x ".join(map(str, stage["resolution"] or ())),
            "parameters": f"{stage['parameters']:,}",
            "training GFLOPs of an image": f"{stage['training_flops'] / stage['batch_size'] / 1e9:.3g}",
            "batch": str(stage["batch_size"]),
            "steps": f"{stage.get('steps', 0):,}",
        }
        for stage in record["stages"]
    ]


def changes(record: Record, shape: Shape | None) -> Element | None:
    """The tables of both; None where the network never changed."""
    rows = change_rows(record, shape)
    if not rows:
        return None
    shown = table(rows) if len(rows) <= MOST_CHANGES else details(f"All {len(rows)}", table(rows))
    return el("div", el("h4", "Changes of size"), shown, details("Every stage", table(stage_rows(record))))

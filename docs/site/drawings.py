"""Draws the pictures of the README and the site: `python docs/site/drawings.py` writes docs/images.

Every figure in them is read from benchmarks/results. Each picture brings its own background, so that it can be read on
a light page and on a dark one.
"""

import csv
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
STYLE = """
  .page { fill: #ffffff; stroke: #d0d7de } .text { fill: #1f2328 } .quiet { fill: #59636e }
  .wait { fill: #c9d1d9 } .old { fill: #0b6e69 } .new { fill: #e08a1e } .none { fill: none; stroke: #8b949e }
  .line { fill: none; stroke: #8b949e; stroke-width: 1.5 } .dense { fill: #57606a }
  .on { fill: #ffffff } .ink { fill: #1f2328 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #161b22; stroke: #30363d } .text { fill: #e6edf3 } .quiet { fill: #9da7b3 }
    .wait { fill: #3d444d } .old { fill: #2a9d8f } .new { fill: #f4a261 } .dense { fill: #9da7b3 }
    .on, .ink { fill: #0d1117 }
  }
  text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
"""


class Drawing:
    """An SVG file in the making; x to the right, y downwards, in pixels."""

    def __init__(self, width: int, height: int, title: str):
        self.size, self.title = (width, height), title
        self.parts = [f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>']

    def box(self, kind: str, x: float, y: float, width: float, height: float, corner: float = 3) -> None:
        """A filled rectangle."""
        shape = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{corner}"'
        self.parts.append(f'<rect class="{kind}" {shape}/>')

    def text(self, x: float, y: float, words: str, size: int = 15, kind: str = "text", anchor: str = "start") -> None:
        """Words whose base line begins, has its middle or ends at x."""
        weight = ' font-weight="600"' if size > 16 else ""
        at = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight}'
        self.parts.append(f'<text class="{kind}" {at}>{words}</text>')

    def arrow(self, x: float, y: float, length: float) -> None:
        """An arrow to the right."""
        self.parts.append(f'<path class="line" d="M{x} {y}h{length}m-7 -5l7 5l-7 5"/>')

    def save(self, name: str) -> None:
        """To docs/images."""
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        )
        body = "\n".join(self.parts)
        (IMAGES / name).write_text(
            f'{head} role="img">\n<title>{self.title}</title>\n<style>{STYLE}</style>\n{body}\n</svg>\n'
        )


STRETCH = 1.5
"""How many times as many epochs the runs of GrowOnce have as the dense ones."""


def full_length(study: str) -> dict[str, dict[str, float]]:
    """The mean over seeds of the longest runs by method: accuracy, seconds, and the share of them on small images."""
    fronts = json.loads((RESULTS / study / "fronts.json").read_text())["fronts"]
    rows = [json.loads(line) for line in (RESULTS / study / "runs.jsonl").read_text().splitlines()]
    found = {}
    for method, budget in (("Dense", 1.0), ("GrowOnce", STRETCH)):
        (knot,) = (each for each in fronts[method]["seconds"] if each["budget"] == budget)
        small = whole = 0.0
        for row in rows:
            if row["method"] == method and row["budget"] == 1:
                last = row["morphs"][-1]["epoch"] if row["morphs"] else 0
                before = row["epochs"][last - 1]["seconds"] if last else 0.0  # seconds count from the first epoch on
                small += before
                whole += row["epochs"][-1]["seconds"] - before
        found[method] = {"accuracy": knot["accuracy"], "seconds": knot["cost"], "small": small / (small + whole)}
    return found


def saving() -> None:
    """What a stranger sees first: two networks, each trained as usual and by GrowOnce, in seconds."""
    drawing = Drawing(900, 372, "Seconds of training and accuracy reached, as usual and by GrowOnce")
    drawing.text(24, 38, "The same network, no less accurate, in about half of the time", 20)
    setting = "10,000 images of CIFAR-10, five seeds, one core of an AMD EPYC. Every run ends with the whole network."
    drawing.text(24, 62, setting, 14, "quiet")
    left, room, y = 150, 500, 92
    for study, name in (("grow_once_vit", "Vision transformer"), ("grow_once_resnet", "ResNet-8")):
        runs = full_length(study)
        scale = room / runs["Dense"]["seconds"]
        drawing.text(24, y + 14, name, 16)
        for method, label, epochs in (("Dense", "as usual", "12 epochs"), ("GrowOnce", "Morphogen", "")):
            run = runs[method]
            x = left
            drawing.text(left - 12, y + 44, label, 14, "quiet", "end")
            for kind, share, words in (("new", run["small"], "small images"), ("old", 1 - run["small"], epochs)):
                long = share * run["seconds"] * scale
                if long:
                    drawing.box(kind, x, y + 26, max(long - 2, 0), 28)
                    drawing.text(x + long / 2, y + 45, words, 14, "ink" if kind == "new" else "on", "middle")
                x += long
            faster = "" if method == "Dense" else f", {runs['Dense']['seconds'] / run['seconds']:.2f}x"
            drawing.text(x + 8, y + 45, f"{run['seconds']:.0f} s, {run['accuracy']:.1f} %{faster}", 16)
            y += 38
        y += 44
    for x, kind, words in (
        (24, "new", "images of five smaller sizes; 18 epochs in all"),
        (404, "old", "images of full size"),
    ):
        drawing.box(kind, x, 338, 16, 16)
        drawing.text(x + 24, 351, words, 14)
    drawing.save("saving.svg")


def width() -> None:
    """A morph in width, on one weight."""
    drawing = Drawing(900, 300, "A layer's weight before and after a growth in width")
    drawing.text(24, 36, "Growing the width: one layer's weight", 20)
    cell = 26

    def grid(x: float, y: float, rows: int, columns: int) -> None:
        for row in range(rows):
            for column in range(columns):
                kind = "old" if row < 4 and column < 4 else "new" if row >= 4 else "none"
                drawing.box(kind, x + column * cell, y + row * cell, cell - 4, cell - 4)

    grid(90, 84, 4, 4)
    drawing.text(90, 74, "4 inputs", 14, "quiet")
    drawing.text(82, 140, "4 outputs", 14, "quiet", "end")
    drawing.arrow(230, 134, 70)
    drawing.text(265, 122, "morph", 14, "quiet", "middle")
    grid(330, 84, 6, 6)
    drawing.text(330, 74, "6 inputs", 14, "quiet")
    legend = (
        ("old", "carried over bit for bit, with its moments"),
        ("new", "new filters, orthogonal to the old ones"),
        ("none", "old outputs read new inputs with weight 0,"),
    )
    for i, (kind, words) in enumerate(legend):
        drawing.box(kind, 520, 92 + 38 * i, 20, 20)
        drawing.text(552, 108 + 38 * i, words, 15)
    drawing.text(552, 206, "so that the network computes what it did", 15)
    drawing.text(24, 276, "Pruning is the same picture from right to left.", 14, "quiet")
    drawing.save("width.svg")


def depth() -> None:
    """A morph in depth, on one stack."""
    drawing = Drawing(900, 250, "A block stack before and after a growth in depth")
    drawing.text(24, 36, "Growing the depth: one stack of eight blocks", 20)
    for y, alive, words in ((78, (0, 2, 4, 6), "4 blocks"), (150, tuple(range(8)), "8 blocks")):
        drawing.text(24, y + 28, words, 15)
        for place in range(8):
            x = 120 + 94 * place
            kind = "none" if place not in alive else "old" if place % 2 == 0 else "new"
            drawing.box(kind, x, y, 78, 44)
            name = f"block {place}" if place in alive else "passes on"
            drawing.text(x + 39, y + 27, name, 14, {"old": "on", "new": "ink"}.get(kind, "quiet"), "middle")
    words = "A new block copies the block below it. Its branches end in zeros at first. Names and places never change."
    drawing.text(24, 228, words, 14, "quiet")
    drawing.save("depth.svg")


def groups() -> None:
    """Why channels go together."""
    drawing = Drawing(900, 270, "Two layers whose outputs are added share one channel group")
    drawing.text(24, 36, "A channel group: channels that live and die together", 20)
    for y, words in ((76, "conv 1"), (146, "conv 2")):
        drawing.box("old", 90, y, 110, 46)
        drawing.text(145, y + 28, words, 15, "on", "middle")
        for channel in range(6):
            drawing.box("new" if channel in (1, 4) else "dense", 236 + 30 * channel, y + 12, 22, 22)
    drawing.parts.append('<path class="line" d="M426 99h54v22M426 169h54v-22"/>')
    drawing.text(480, 140, "+", 22, "text", "middle")
    drawing.arrow(498, 134, 60)
    for channel in range(6):
        drawing.box("new" if channel in (1, 4) else "dense", 576 + 30 * channel, 123, 22, 22)
    drawing.text(576, 180, "to whatever reads the sum", 14, "quiet")
    drawing.text(
        24,
        232,
        "The addition ties channel 1 of conv 1 to channel 1 of conv 2. A sub-network keeps both or drops both.",
        15,
    )
    drawing.text(
        24, 254, "Morphogen derives this from PyTorch's exported graph, by one small rule for each op.", 14, "quiet"
    )
    drawing.save("groups.svg")


def badges() -> None:
    """Two counts, from the files that hold them."""
    rows = list(csv.DictReader((RESULTS / "zoo" / "zoo.csv").open()))
    ok = sum(row["outcome"] == "ok" for row in rows)
    kills = (RESULTS / "kills" / "runs.jsonl").read_text().splitlines()
    same = sum(json.loads(line).get("equal", False) for line in kills)
    for name, label, value in (
        ("models.svg", "models that grow and prune", f"{ok} of {len(rows)}"),
        ("kills.svg", "killed and resumed, bit for bit", f"{same} of {len(kills)}"),
    ):
        left, right = 7 * len(label) + 10, 7 * len(value) + 16
        drawing = Drawing(left + right, 24, f"{label}: {value}")
        drawing.parts.clear()
        drawing.box("dense", 0, 0, left, 24)
        drawing.box("old", left, 0, right, 24)
        drawing.text(left / 2, 16, label, 12, "on", "middle")
        drawing.text(left + right / 2, 16, value, 12, "on", "middle")
        drawing.save(name)


def main() -> None:
    """All of them."""
    IMAGES.mkdir(exist_ok=True)
    for draw in (saving, width, depth, groups, badges):
        draw()


if __name__ == "__main__":
    main()

"""Ledgers made by hand, and a reader of pages that knows what a page must not have."""

from __future__ import annotations

import json
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link"}
MARKUP = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script><b>&amp;\u202e\x00"
"""A name that would do something, were it markup; and characters that turn the direction of writing or end a text."""


def subnetwork(width=8, blocks=2, side=16):
    return {
        "channels": {"stem": f"0:{width}", "head.0": f"0:{2 * width}"},
        "blocks": {"blocks": f"0:{blocks}"},
        "resolution": [side, side],
    }


def stage(epoch, share=1.0, steps=20, **settings):
    """Of a network with 100 parameters and 1,000 FLOPs a step of 10 images."""
    return {
        "epoch": epoch,
        "resolution": [16, 16],
        "parameters": round(100 * share),
        "training_flops": round(1000 * share),
        "batch_size": 10,
        "searching": False,
        "steps": steps,
        "images": 10 * steps,
        "inference_flops": round(30 * share),
        "normalisation": round(80 * share),
        "layers": 9,
        "memory": None,
    } | settings


def run(method="Dense", seed=0, accuracies=(20.0, 40.0, 60.0, 80.0), second=1.0, **settings):
    """A record of an epoch for each accuracy, each so many seconds long."""
    found = {
        "method": method,
        "model": "net",
        "data": "digits",
        "seed": seed,
        "accuracy": accuracies[-1],
        "stopped": None,
        "training_seconds": second * len(accuracies),
        "flops": 1000 * 5 * len(accuracies),
        "seconds": {"step": 0.8 * second * len(accuracies), "data": 0.2 * second * len(accuracies), "evaluation": 1.0},
        "samples": 50 * len(accuracies),
        "peak_memory": 10**9,
        "epochs": [
            {"epoch": n, "loss": 1.0 / (n + 1), "accuracy": accuracy, "seconds": second * (n + 1)}
            for n, accuracy in enumerate(accuracies)
        ],
        "morphs": [],
        "stages": [stage(0)],
        "history": [{"epoch": 0, "subnetwork": subnetwork()}],
        "dense": subnetwork(),
        "searches": [],
        "rescues": [],
        "schedule": None,
        "predicted_speedup": None,
        "pruned": None,
        "recipe": {"model": "net", "epochs": len(accuracies), "lr": 0.1},
        "environment": {"device": "a processor", "torch": "2"},
    }
    return found | settings


def grown(method="Grow", seed=0, **settings):
    """Two epochs at half the width and depth, two at full size."""
    morph = {"epoch": 2, "accuracy_before": 40.0, "accuracy_after": 35.0, "seconds": 0.1, "total_seconds": 1.5}
    correlations = {"layer": "stem", "new": [False, True], "matrix": [[1.0, 0.25], [0.25, 1.0]]}
    history = [{"epoch": 0, "subnetwork": subnetwork(4, 1, 8)}, {"epoch": 2, "subnetwork": subnetwork()}]
    stages = [stage(0, 0.5, 10, resolution=[8, 8]), stage(2, 1.0, 10)]
    return run(
        method,
        seed,
        second=0.75,
        morphs=[{**morph, "correlations": correlations}],
        stages=stages,
        history=history,
        flops=15_000,
        **settings,
    )


def searched(method="Search", seed=0):
    """One search, of two candidates and one that was dropped."""
    candidate = {"blocks": 1, "resolution": [8, 8], "loss": 2.0, "fitted": 2.0, "seconds": 0.01, "score": 0.2}
    candidate |= {"error": 0.01, "subnetwork": subnetwork(8, 1, 8)}
    larger = {**candidate, "blocks": 2, "resolution": [16, 16], "loss": 1.5, "seconds": 0.02}
    dropped = {**candidate, "loss": None, "fitted": None, "score": None}
    search = {"epoch": 1, "epochs": 1, "exponent": 0.5, "chosen": 1, "seconds": 0.3, "within_steps": 0.0}
    return grown(method, seed, searches=[{**search, "candidates": [candidate, larger, dropped]}])


def pruned(method="PruneTrain(ratio=0.2)", seed=0, accuracy=78.0, left=0.4, **settings):
    """Half of it goes before the second of four epochs, more of it before the third."""
    stages = [stage(0, 1.0, 5), stage(1, 0.5, 5), stage(2, left, 10)]
    for each, gated in zip(stages, (1.0, 0.9, 0.8), strict=True):
        each["gated"] = gated
    book = {
        "dense": stage(0, 1.0, 20),
        "threshold": 1e-4,
        "coefficient": 0.1,
        "sparsity": {"layer1": [[0.5, 0.1], [0.5, 0.001], [0.4, 0.0], [0.4, 0.0]]},
        "density": [
            {"layer": "layer1", "channels": 0.5, "weights": 0.25},
            {"layer": "fc", "channels": 1.0, "weights": 1.0},
        ],
        "inference": [{"batch": 10, "dense": 100.0, "pruned": 150.0}],
    }
    history = [{"epoch": n, "subnetwork": subnetwork(width)} for n, width in ((0, 8), (1, 4), (2, 3))]
    return run(method, seed, (20.0, 40.0, 60.0, accuracy), 0.6, stages=stages, history=history, pruned=book, **settings)


def folder(path, *records):
    """An output folder as `compare` leaves it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "results.json").write_text(json.dumps(list(records)))
    return path


class Reader(HTMLParser):
    """Reads a page; raises AssertionError where an element is not closed, or is one that a page must not have."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        assert len(self.ids) == len(set(self.ids)), "an id is there twice"

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "iframe", "object", "embed", "link", "img", "base", "form", "foreignobject"), tag
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name not in ("src", "srcset", "xlink:href", "action", "data"), name
            if name == "href":
                assert value[:1] == "#", value
            if name == "id":
                self.ids.append(value)
            assert name != "style"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data and "http" not in data
        else:
            self.texts.append(data)

    @property
    def text(self):
        """All that is read."""
        return " ".join(self.texts)

"""What tracing and morphing cost beside one training epoch: ResNet-50, AdamW, orthogonal growth 0.5 to 0.75.

    python benchmarks/morph_cost.py [--model resnet50] [--rounds 5]

Prints medians in seconds, and the peak of extra memory during growth as a share of the model and its optimizer state
(the dense one, and the one that has grown to 0.75).
Appends a record to benchmarks/results/morph_cost.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path

import torch
import torchvision

import morphogen
from morphogen.report.ledger import environment


class Peak:
    """Largest resident memory of this process while the block runs, sampled every millisecond (bytes)."""

    def __enter__(self):
        self.start = self.most = resident()
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while self.running:
            self.most = max(self.most, resident())
            time.sleep(0.001)

    def __exit__(self, *_):
        self.running = False
        self.thread.join()
        self.extra = self.most - self.start


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def with_adam_state(model) -> int:
    """Bytes of a model and its optimizer state: two moments a weight."""
    tensors = [*model.parameters(), *model.parameters(), *model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    x = torch.randn(2, 3, 224, 224)
    times = {"trace": [], "narrow": [], "first grow": [], "grow": [], "step": []}
    shares = []
    for _ in range(options.rounds):
        model = torchvision.models.get_model(options.model, weights=None)
        optimizer = torch.optim.AdamW(model.parameters())
        dense = with_adam_state(model)
        start = time.perf_counter()
        net = morphogen.trace(model, x)
        times["trace"].append(time.perf_counter() - start)
        for key in ("first grow", "grow"):  # the first time, the size is tried on fake tensors
            times["narrow"].append(morphogen.morph(net, net.subnetwork(width=0.5), optimizer=optimizer).seconds)
            start = time.perf_counter()
            model(x).sum().backward()
            optimizer.step()
            times["step"].append(time.perf_counter() - start)
            optimizer.zero_grad()
            with Peak() as peak:
                receipt = morphogen.morph(net, net.subnetwork(width=0.75), optimizer=optimizer, operator="orthogonal")
            times[key].append(receipt.seconds)
            shares.append((peak.extra / dense, peak.extra / with_adam_state(model)))
    record = {
        "model": options.model,
        **{key: statistics.median(values) for key, values in times.items()},
        "extra memory, of dense": statistics.median(share[0] for share in shares),
        "extra memory, of grown": statistics.median(share[1] for share in shares),
        "rounds": options.rounds,
        "environment": environment(torch.device("cpu")),
    }
    for key, value in record.items():
        print(f"{key:>20}: {value:.3f}" if isinstance(value, float) else f"{key:>20}: {value}")
    with open(Path(__file__).parent / "results" / "morph_cost.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

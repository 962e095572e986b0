"""What tracing and morphing cost beside one training epoch: ResNet-50, AdamW, orthogonal growth 0.5 to 0.75.

    python benchmarks/morph_cost.py [--model resnet50] [--rounds 5]

Prints medians in seconds, and the peak of extra memory as a share of the grown model and its optimizer state.
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


def state_bytes(model, optimizer) -> int:
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers(), *states])


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
            shares.append(peak.extra / state_bytes(model, optimizer))
    record = {
        "model": options.model,
        **{key: statistics.median(values) for key, values in times.items()},
        "extra memory share": statistics.median(shares),
        "rounds": options.rounds,
        "environment": environment(torch.device("cpu")),
    }
    for key, value in record.items():
        print(f"{key:>20}: {value:.3f}" if isinstance(value, float) else f"{key:>20}: {value}")
    with open(Path(__file__).parent / "results" / "morph_cost.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

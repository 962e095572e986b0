"""What tracing and morphing cost beside one training epoch: ResNet-50, AdamW, orthogonal growth 0.5 to 0.75.

    python benchmarks/morph_cost.py [--model resnet50] [--rounds 5]

Prints medians in seconds, processor seconds (the best of the rounds, one thread) beside a plain `torch.export`, and the
peak of extra memory during growth as a share of the model and its optimizer state (the dense one, and the one that has
grown to 0.75).
Appends a record to benchmarks/results/morph_cost.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torchvision

import morphogen
from morphogen.morph.trial import try_out
from morphogen.report.ledger import environment

X = torch.randn(2, 3, 224, 224)


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


def measure_memory(name: str) -> tuple[float, float]:
    """Peak of extra memory while the network grows, as shares of the dense and of the grown network."""
    model = torchvision.models.get_model(name, weights=None)
    dense = with_adam_state(model)
    optimizer = torch.optim.AdamW(model.parameters())
    net = morphogen.trace(model, X)
    morphogen.morph(net, net.subnetwork(width=0.5), optimizer=optimizer)
    model(X).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    try_out(net, net.subnetwork(width=0.75))
    with Peak() as peak:
        morphogen.morph(net, net.subnetwork(width=0.75), optimizer=optimizer, operator="orthogonal")
    return peak.extra / dense, peak.extra / with_adam_state(model)


def measure_times(name: str, rounds: int) -> dict[str, float]:
    """Medians in seconds."""
    times: dict[str, list[float]] = {"trace": [], "narrow": [], "first grow": [], "grow": []}
    for _ in range(rounds):
        model = torchvision.models.get_model(name, weights=None)
        optimizer = torch.optim.AdamW(model.parameters())
        start = time.perf_counter()
        net = morphogen.trace(model, X)
        times["trace"].append(time.perf_counter() - start)
        for key in ("first grow", "grow"):  # the first time, the size is tried out on fake tensors
            times["narrow"].append(morphogen.morph(net, net.subnetwork(width=0.5), optimizer=optimizer).seconds)
            model(X).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            larger = net.subnetwork(width=0.75)
            times[key].append(morphogen.morph(net, larger, optimizer=optimizer, operator="orthogonal").seconds)
    return {key: statistics.median(values) for key, values in times.items()}


def processor_seconds(name: str, rounds: int) -> dict[str, float]:
    """The best of some rounds, with one thread, of an export, a trace, and the first morph to a size."""
    best: dict[str, float] = {}

    def timed(key, act, *args, **kwargs):
        start = time.process_time()
        result = act(*args, **kwargs)
        best[key] = min(best.get(key, float("inf")), time.process_time() - start)
        return result

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(rounds):
        model = torchvision.models.get_model(name, weights=None)
        timed("export, processor", torch.export.export, model.eval(), (X,), strict=False)
        net = timed("trace, processor", morphogen.trace, model, X)
        optimizer, half = torch.optim.AdamW(model.parameters()), net.subnetwork(width=0.5)
        timed("first morph, processor", morphogen.morph, net, half, optimizer=optimizer)
    torch.set_num_threads(threads)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure memory alone, and print two numbers")
    options = parser.parse_args()
    if options.memory:
        print(*measure_memory(options.model))
        return
    # Memory is measured in a process whose large blocks go back to the system as soon as they are freed.
    child = [sys.executable, __file__, "--memory", "--model", options.model]
    result = subprocess.run(
        child, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}, stdout=subprocess.PIPE, check=True
    )
    of_dense, of_grown = map(float, result.stdout.split())
    record = {
        "model": options.model,
        **measure_times(options.model, options.rounds),
        **processor_seconds(options.model, options.rounds),
        "extra memory, of dense": of_dense,
        "extra memory, of grown": of_grown,
        "rounds": options.rounds,
        "environment": environment(torch.device("cpu")),
    }
    for key, value in record.items():
        print(f"{key:>24}: {value:.3f}" if isinstance(value, float) else f"{key:>24}: {value}")
    with open(Path(__file__).parent / "results" / "morph_cost.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

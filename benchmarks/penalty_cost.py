"""What pruning costs beside a training step: the group lasso penalty, its proximal step, a reconfiguration.

    python benchmarks/penalty_cost.py [--device cuda --precision bfloat16 --memory_format channels_last]
    OMP_NUM_THREADS=1 python benchmarks/penalty_cost.py --clock process

A step of ResNet-50 at batch 64 and 224 pixels with SGD and momentum takes turns with the penalty (forward and backward,
onto gradients that are there) and with the proximal step. On a GPU steps that have the penalty in their loss take turns
too: the penalty alone is then bound by its launches, which in training run ahead of the GPU. Then half of the channels
are planted below the threshold, and the time is taken until the network is half as wide and has its new penalty: what
is sparse (decide), the morph with its trial and the optimizer's state, the new penalty (follow). On 2 CPU cores about
five minutes. `--clock process` counts the process's own seconds on the processor: with one thread the same as wall time
where nothing else runs, and still right where something does. Appends a record (medians in seconds, shares of a step,
load) to benchmarks/results/penalty_cost.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

import morphogen
from morphogen.machine.timing import now, rounds_of
from morphogen.pruning.lasso import Step
from morphogen.pruning.sparsity import sparse_part
from morphogen.report.ledger import environment
from morphogen.train.models import build_model

COEFFICIENT = 1e-8
"""Too small to change the weights in the course of a measurement; it takes as long as any."""


class Training:
    """A model with its optimizer and a batch of random images."""

    def __init__(self, options: argparse.Namespace):
        self.device = torch.device(options.device)
        self.format = getattr(torch, options.memory_format)
        self.precision = getattr(torch, options.precision)
        self.model = build_model(options.model, 1000).to(self.device, memory_format=self.format).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, momentum=0.9)
        self.net = morphogen.trace(self.model, self.images(2, options.side))
        self.lasso = morphogen.GroupLasso(self.net)
        self.folded = morphogen.GroupLasso(self.net, folded=True)
        self.labels = torch.randint(1000, (options.batch_size,), device=self.device)
        self.batch = self.images(options.batch_size, options.side)

    def images(self, count: int, side: int) -> torch.Tensor:
        """(count, 3, side, side)"""
        return torch.randn(count, 3, side, side, device=self.device).contiguous(memory_format=self.format)

    def loss(self) -> torch.Tensor:
        """Of the batch, without the penalty."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return nn.functional.cross_entropy(self.model(self.batch), self.labels)

    def step(self) -> None:
        """A training step."""
        self._update(self.loss())

    def penalised_step(self) -> None:
        """One with the penalty in its loss."""
        self._update(self.loss() + COEFFICIENT * self.lasso())

    def penalty(self) -> None:
        """The penalty alone, forward and backward."""
        (COEFFICIENT * self.lasso()).backward()

    def proximal(self) -> None:
        """What the proximal variant does after a step."""
        self.lasso.shrink(dict.fromkeys(self.lasso.weights, Step(COEFFICIENT)))

    def folded_penalty(self) -> None:
        """The same two with the batch norms folded in: the penalty."""
        (COEFFICIENT * self.folded()).backward()

    def folded_proximal(self) -> None:
        """And the proximal step."""
        self.folded.shrink(dict.fromkeys(self.folded.trained, Step(COEFFICIENT)))

    def _update(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def costs(training: Training, seconds: float) -> dict[str, float]:
    """Medians in seconds, and by that of a step."""
    pieces: dict[str, Callable[[], None]] = {
        "step": training.step,
        "penalty": training.penalty,
        "proximal step": training.proximal,
        "folded penalty": training.folded_penalty,
        "folded proximal step": training.folded_proximal,
    }
    if training.device.type == "cuda":
        pieces["step with penalty"] = training.penalised_step
    rounds = rounds_of(list(pieces.values()), training.device, seconds)
    medians = {name: statistics.median(times) for name, times in zip(pieces, rounds, strict=True)}
    return medians | {f"{name}, of a step": medians[name] / medians["step"] for name in list(pieces)[1:]}


def plant(net: morphogen.Network) -> None:
    """Bring a random half of the channels of every group below the threshold."""
    chosen = {group.name: torch.randperm(group.size)[: max(1, group.size // 2)].tolist() for group in net.groups}
    alive = net.structure.alive_mask(net.subnetwork(alive=chosen))
    with torch.no_grad():
        for name, layout in net.structure.present(net.current).items():
            for dim, axis in enumerate(layout.axes):
                if layout.role.kind == "weight" and axis is not None:
                    weight = net.model.get_parameter(name)
                    weight.index_fill_(dim, (~alive[axis]).nonzero().flatten().to(weight.device), 5e-5)


def reconfiguration(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each part of one reconfiguration."""
    small = argparse.Namespace(**{**vars(options), "batch_size": 2, "side": 64})  # its cost is that of the weights
    training = Training(small)
    training.step()  # so that there is optimizer state
    plant(training.net)
    marks = [now(training.device)]
    left = sparse_part(training.net, 1e-4)
    marks.append(now(training.device))
    morphogen.morph(training.net, left, optimizer=training.optimizer)
    marks.append(now(training.device))
    morphogen.GroupLasso(training.net)
    marks.append(now(training.device))
    assert all(2 * len(left.channels[group.name]) <= group.size for group in training.net.groups if group.size > 1)
    parts = [after - before for before, after in pairwise(marks)]
    return dict(zip(("decide", "morph", "follow", "reconfiguration"), [*parts, sum(parts)], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--memory_format", choices=("contiguous_format", "channels_last"), default="contiguous_format")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring steps; three rounds at least")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall")
    options = parser.parse_args()
    if options.clock == "process":
        time.perf_counter = time.process_time
    load = os.getloadavg()[0]
    training = Training(options)
    record = {
        **{key: value for key, value in vars(options).items() if key != "seconds"},
        **costs(training, options.seconds),
    }
    del training
    parts = [reconfiguration(options) for _ in range(3)]
    record |= {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    # Above the number of this process's threads, others were at work.
    record |= {"load before": load, "load after": os.getloadavg()[0]}
    record["environment"] = environment(torch.device(options.device))
    for key, value in record.items():
        print(f"{key:>26}: {value:.4f}" if isinstance(value, float) else f"{key:>26}: {value}")
    with open(Path(__file__).parent / "results" / "penalty_cost.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

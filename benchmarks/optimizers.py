"""Which optimizers follow a network that changes its size: timm's and pytorch_optimizer's, each tried on a small net.

    python benchmarks/optimizers.py [--out benchmarks/results/optimizers] [NAME ...]

Each trains a small net of two widths and three blocks: a step at half width and depth, growth to all of it (new blocks
and channels), two steps more. An optimizer follows where

- what was alive of each state that has its parameter's shape is bitwise what it was;
- what is new begins as it begins in a fresh optimizer: as a copy of the weights, or as a constant (running means of
  squared gradients at the mean of the old);
- the steps after that are finite.

All others must be refused by `attach`, before anything has changed. Needs `pip install pytorch_optimizer`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import nn

import morphogen
from morphogen.morph.optimizer_state import SECOND_MOMENTS

SKIPPED = {
    "lookahead": "wraps another optimizer",
    "bnb": "needs bitsandbytes",
    "fused": "needs apex",
}


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 48), nn.Linear(48, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C) to (N, C)."""
        return x + self.down(self.up(self.norm(x)).relu())


class Net(nn.Module):
    """A convolution, four blocks, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.head = (
            nn.Conv2d(3, 40, 3),
            nn.ModuleList(Block(40) for _ in range(4)),
            nn.Linear(40, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, 4)."""
        x = self.stem(x).relu().mean((2, 3))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    second = "hess" in type(optimizer).__name__.lower() or "sophia" in type(optimizer).__name__.lower()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward(create_graph=second)
        return loss

    try:
        closure()
        optimizer.step()
    except Exception:  # one that wants a closure
        optimizer.step(closure)


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    return {
        (name, key): value.detach().clone()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.ndim
    }


def trial(make) -> tuple[str, str]:
    """Its outcome: (follows | refused at attach, or at the first growth | WRONG | cannot train, why)."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    plain = Net()
    try:
        own = make(plain)
        for _ in range(2):
            step(plain, own, x)
    except Exception as error:
        return "cannot train", f"without Morphogen: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
    model = Net()
    optimizer = make(model)
    method = morphogen.NetworkExpansion(width=0.5, depth=0.5, stages=2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    try:
        run = morphogen.attach(model, optimizer, method, example=x, epochs=2)
    except morphogen.MorphError as error:
        same = all(torch.equal(p, before[n]) for n, p in model.named_parameters())
        return ("refused at attach" if same else "WRONG"), str(error)
    try:
        run.begin_epoch(0)
        for _ in range(2):
            step(model, optimizer, x)
        old = states(model, optimizer)
        receipt = run.begin_epoch(1)
        new = states(model, optimizer)
        for (name, key), value in old.items():
            change = receipt.changes.get(name)
            if change is None:
                if not torch.equal(new[name, key], value):
                    return "WRONG", f"{name}, {key}: changed"
                continue
            if not torch.equal(change.map.survivors(new[name, key]), change.map.survivors_of_old(value)):
                return "WRONG", f"{name}, {key}: not carried bitwise"
            begin = run.network.begins[optimizer].get(key, 0.0)
            weights = dict(model.named_parameters())[name].detach()
            fill = weights.to(value) if begin is None else begin
            if key in SECOND_MOMENTS and change.map.grows and begin is not None:
                fill = value.float().mean().to(value.dtype).expand(weights.shape)
            if not torch.equal(change.map.carry(value, fill), new[name, key]):
                return (
                    "WRONG",
                    f"{name}, {key}: what is new does not begin as it should",
                )
        for _ in range(2):
            step(model, optimizer, x)
    except morphogen.MorphError as error:  # no step of it could be rehearsed
        return "refused at the first growth", str(error).splitlines()[0][:160]
    except Exception as error:
        return "WRONG", f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    if not all(p.isfinite().all() for p in model.parameters()):
        return "WRONG", "weights that are not finite"
    begins = run.network.begins[optimizer]
    return "follows", ", ".join(f"{k}: {'weights' if b is None else f'{b:g}'}" for k, b in sorted(begins.items()))


def optimizers() -> dict:
    """Every optimizer of both packages, by name."""
    from timm.optim import create_optimizer_v2, list_optimizers

    found = {f"timm {name}": lambda m, name=name: create_optimizer_v2(m, name, lr=1e-3) for name in list_optimizers()}
    with contextlib.suppress(ImportError):
        import pytorch_optimizer

        for name in pytorch_optimizer.get_supported_optimizers():
            kind = pytorch_optimizer.load_optimizer(name)
            found[f"pytorch_optimizer {name}"] = lambda m, kind=kind: kind(m.parameters(), lr=1e-3)
    for kind in ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "ASGD", "RMSprop", "Rprop"):
        found[f"torch {kind}"] = lambda m, kind=kind: getattr(torch.optim, kind)(m.parameters(), lr=1e-3)
    for kind in ("Adafactor", "LBFGS"):
        found[f"torch {kind}"] = lambda m, kind=kind: getattr(torch.optim, kind)(m.parameters())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/optimizers"))
    parser.add_argument("names", nargs="*", help="those whose names contain one of these; by default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, make in optimizers().items():
        if options.names and not any(part in name for part in options.names):
            continue
        skipped = next((why for part, why in SKIPPED.items() if part in name.split()[-1].lower()), None)
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            outcome, why = ("not tried", skipped) if skipped else trial(make)
        rows.append({"optimizer": name, "outcome": outcome, "why": why})
        print(f"{name:34} {outcome:18} {why[:150]}", flush=True)
    print(Counter(row["outcome"] for row in rows))
    if not options.names:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(row["outcome"] == "WRONG" for row in rows))


if __name__ == "__main__":
    main()

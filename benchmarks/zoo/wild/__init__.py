"""Models of other people's packages: small configurations, random weights, each with an input of its own.

The environment is made from `requirements.txt` beside this file; nothing of it is needed elsewhere:

    uv venv .wild --python 3.11
    uv pip install --python .wild -c constraints.txt -e '.[bench]' -r benchmarks/zoo/wild/requirements.txt
    uv pip install --python .wild --no-deps -r benchmarks/zoo/wild/no-deps.txt
    .wild/bin/python benchmarks/zoo --set wild --peer --output benchmarks/results/zoo/wild

A model is named `PACKAGE:NAME`. Each file has a dictionary of its packages' models; a `Wild` is how one is built and
what it is called with (a tensor, a tuple of arguments, or a dictionary of keyword arguments). Packages are imported
when one of their models is built.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache

import torch
from torch import nn

from .kinds import Wild

FILES = "hugging noise images vits volumes words".split()


@cache
def models() -> dict[str, Wild]:
    """Every model of every file."""
    found: dict[str, Wild] = {}
    for name in FILES:
        found |= importlib.import_module(f"{__name__}.{name}").MODELS
    return found


def build(name: str) -> nn.Module:
    """A model with the same random weights each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return models()[name].build()


def in_turn() -> list[str]:
    """All names, the packages mixed, so that the first hundred are a sample of all."""
    of: dict[str, list[str]] = {}
    for name in models():
        of.setdefault(name.partition(":")[0], []).append(name)
    places = {name: place / len(names) for names in of.values() for place, name in enumerate(names)}
    return sorted(places, key=lambda name: places[name])

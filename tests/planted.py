"""Outcomes that are known: searches whose loss is least for the candidate that is to win, and sparse channels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

import morphogen
from morphogen.machine.timing import StepClock
from morphogen.parts import Search
from morphogen.report.outcome import saved_schedule

from nets import Block, Tower, image

Size = tuple[int, int, int]
"""Channels, blocks and side of the image, as a `Tower` ran."""


def plant_times(monkeypatch, seconds: Callable[[int], float] = lambda number: 1.0) -> None:
    """Searches take these for the measured times, by the candidate's number."""
    monkeypatch.setattr(StepClock, "medians", lambda self: {number: seconds(number) for number in self._marks})


def steps_of(run: morphogen.Run) -> int:
    """Steps of an epoch that are as few as a search of one epoch can do with."""
    search = run.part(Search)
    return len(search.searching.stage.candidates) if search and search.searching and search.chooses else 1


class Planted:
    """A probe for a `Tower`: in each search the loss is 0.1 at one size and 1 at all others, whatever the weights.

    For searches that measure once (`scoring="literal"`).

    Attributes:
        best: the size that is to win in each search.
        seen: for each search what its loss was called with: the size that ran, images, labels.
    """

    def __init__(self, model: nn.Module, best: Sequence[Size] = (), batches: int = 1):
        self.model, self.best = model, best
        self.batches = [(torch.randn(4, 3, 8, 8), torch.full((4,), i)) for i in range(batches)]
        self.seen: list[list[tuple[Size, torch.Tensor, torch.Tensor]]] = []

    @property
    def probe(self) -> morphogen.Probe:
        return morphogen.Probe(self.loss, self)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.seen.append([])
        return iter(self.batches)

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        output, size = sized(self.model, images)
        self.seen[-1].append((size, images.clone(), labels))
        return 0 * output.sum() + (0.1 if size == self.best[len(self.seen) - 1] else 1.0)


def sized(call: nn.Module, images: torch.Tensor, model: nn.Module | None = None) -> tuple[torch.Tensor, Size]:
    """The output of a `Tower` (called through what it is wrapped in), and the size it ran at, as its layers saw it."""
    model = call if model is None else model
    channels: list[int] = []
    blocks: list[nn.Module] = []
    hooks = [model.conv1.register_forward_hook(lambda *call: channels.append(call[2].shape[1]))]
    hooks += [
        block.conv.register_forward_hook(lambda *call: blocks.append(call[0]))
        for block in model.blocks
        if isinstance(block, Block)
    ]
    output = call(images)
    for hook in hooks:
        hook.remove()
    return output, (channels[0], len(blocks), images.shape[-1])


def found_schedule(folder: Path, best: Sequence[Size]) -> Path:
    """The file of a short run of AutoProg whose searches found these sizes; times are to be planted."""
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = morphogen.AutoProg(stages=len(best) + 1, search_epochs=1, scoring="literal")
    epochs = 2 * method.stages
    probe = Planted(model, best).probe
    run = morphogen.attach(
        model, optimizer, method, example=image(), epochs=epochs, steps_per_epoch=9, probe=probe, hooks=False
    )
    for epoch in range(epochs):
        run.begin_epoch(epoch)
        for _ in range(steps_of(run)):
            run.begin_step(image())
            run.end_step()
    file = folder / "schedule.json"
    file.write_text(json.dumps(saved_schedule(run).to_dict()))
    return file


def plant_sparse(net: morphogen.Network, target: morphogen.SubNetwork, value: float = 0.0) -> None:
    """Give every weight that the present sub-network has and `target` has not this value, in all layers."""
    alive, now = net.structure.alive_mask(target), net.structure.alive_mask(net.current)
    with torch.no_grad():
        for name, layout in net.structure.present(net.current).items():
            for dim, axis in enumerate(layout.axes):
                if axis is not None and layout.role.kind == "weight":
                    gone = (~alive[axis[now[axis]]]).nonzero().flatten()
                    net.model.get_parameter(name).index_fill_(dim, gone, value)

"""What a run writes into its ledger of its network: stages and what they cost, morphs, searches, what pruning left."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..cost.inference import inference_speeds
from ..dense.subnet import SubNetwork
from ..morph.commit import Receipt
from ..parts import Choose, Prune
from ..parts.resizing import Size
from ..report.gating import gated_share
from ..report.ledger import Ledger, MorphEvent, PrunedRun
from ..report.sparsity import densities, mapped_layers, output_maxima
from ..run.run import Run
from ..search.candidates import Found
from .costs import Costs
from .objective import precision_of
from .recipe import Recipe
from .tasks.task import Beside

THRESHOLD = 1e-4
"""Below it a weight counts as zero in the density of a run that prunes without a threshold; PruneTrain's own."""


class Books:
    """Keeps the ledger of one run. Nothing here changes the network or draws a random number."""

    def __init__(
        self,
        ledger: Ledger,
        attached: Run,
        recipe: Recipe,
        device: torch.device,
        steps: int,
        batch_size: int,
        beside: Callable[[Size | None], Beside],
    ):
        """
        Args:
            ledger: of the run, which has not begun.
            attached: its network, with the method at work.
            recipe: how it trains.
            device: where.
            steps: of the whole run, with the recipe's batch.
            batch_size: images in its first step.
            beside: see `Costs`.
        """
        self._ledger, self._attached, self._recipe, self._device = ledger, attached, recipe, device
        self._costs = Costs(attached, lambda: precision_of(recipe, device), beside)
        self._prune, self._search = attached.part(Prune), attached.part(Choose)
        network = attached.network
        ledger.dense = network.dense.to_dict()
        self.open_stage(0, batch_size)
        if attached.assembly.shrinks:
            price = self._costs.of_stage(0, network.dense, recipe.batch_size)
            price = replace(price, steps=steps, images=steps * recipe.batch_size)
            ledger.pruned = PrunedRun(price, THRESHOLD if self._prune is None else self._prune.policy.threshold)
        if self._prune is not None:
            self._mapped = mapped_layers(network, recipe.sparsity_map)

    def flops_of(self, subnetwork: SubNetwork, batch_size: int, frozen: frozenset[str] | None = None) -> float:
        """Training FLOPs of an image of a step of so many, with what is frozen (by default: now)."""
        with self._ledger.clock("accounting", self._device):
            return self._costs.of_step(subnetwork, batch_size, frozen).training / batch_size

    def open_stage(self, epoch: int, batch_size: int) -> None:
        """Enter the sub-network that trains from here on."""
        network, ledger = self._attached.network, self._ledger
        with ledger.clock("accounting", self._device):
            searching = self._search is not None and self._search.searching is not None
            stage = self._costs.of_stage(epoch, network.current, batch_size, searching)
            if self._prune is not None:
                policy = self._prune.policy
                stage.gated = gated_share(network, stage.inference_flops, policy.threshold, folded=policy.folded)
            ledger.stages.append(stage)
            ledger.history = [
                {"epoch": at, "subnetwork": subnetwork.to_dict()} for at, subnetwork in self._attached.history
            ]

    @property
    def is_behind(self) -> bool:
        """Whether the network has changed since the last stage was opened."""
        return len(self._attached.history) > len(self._ledger.history)

    def add_steps(self, counts: Sequence[int]) -> None:
        """An epoch's steps were taken, each with so many images."""
        with self._ledger.clock("accounting", self._device):
            runs = [self._costs.of_step(self._attached.runs(step), count) for step, count in enumerate(counts)]
            self._ledger.stages[-1].add(len(counts), sum(counts), sum(cost.training for cost in runs))

    def add_search(self, found: Found, within: str) -> None:
        """A search is over; its time goes from its steps, and from the cause that it was part of, to its own."""
        ledger = self._ledger
        ledger.seconds["search"] += found.seconds
        ledger.seconds["step"] -= found.within_steps
        ledger.seconds[within] -= found.seconds - found.within_steps
        ledger.searches.append(found.record())

    def add_morph(
        self, epoch: int, before: float, after: float, receipt: Receipt, correlations: dict[str, Any] | None = None
    ) -> None:
        """The network has changed its size, with the test's figure (percent) before and after; warns where that fell by
        more than the recipe allows."""
        ledger = self._ledger
        ledger.morphs.append(MorphEvent(epoch, before, after, receipt.seconds, ledger.training_seconds, correlations))
        old, new = receipt.before, receipt.after
        resized = (old.channels, old.blocks) == (new.channels, new.blocks)  # falls, and comes back in an epoch
        if before - after > self._recipe.warn_drop and not resized:
            warnings.warn(
                f"epoch {epoch + 1}: {ledger.metric} fell from {before:.1f} to {after:.1f} % at a change of size, by "
                f"more than warn_drop={self._recipe.warn_drop:g} points; more stages or another operator lose less",
                stacklevel=2,
            )

    def end_epoch(self) -> None:
        """The epoch is over, and its figures are in the ledger."""
        ledger = self._ledger
        ledger.note_memory(self._device)
        if ledger.pruned is not None and self._prune is not None:
            ledger.pruned.coefficient = self._prune.pruner.coefficient
            with ledger.clock("accounting", self._device):
                for layer, maxima in output_maxima(self._attached.network, self._mapped).items():
                    ledger.pruned.sparsity.setdefault(layer, []).append(maxima)

    def close(self, dense: Callable[[], nn.Module], result: nn.Module, example: Callable[[int], torch.Tensor]) -> None:
        """The run is over: of one that prunes, what is left of each layer, and the speed against the dense network."""
        ledger = self._ledger
        if ledger.pruned is None:
            return
        with ledger.clock("accounting", self._device), precision_of(self._recipe, self._device):
            ledger.pruned.density = densities(self._attached.network, ledger.pruned.threshold)
            with suppress(RuntimeError):  # out of memory; a finished run is not lost to a figure
                ledger.pruned.inference = inference_speeds(dense(), result, example, self._device)

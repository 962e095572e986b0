"""The ledger of one run: time by cause, FLOPs, memory, accuracy, and every morph."""

from __future__ import annotations

import platform
import resource
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..cost.inference import InferenceSpeed
from ..machine.timing import now

TRAINING = ("step", "compile", "data", "trace", "morph", "search", "checkpoint")
"""Causes of time that training takes."""

BESIDE = ("evaluation", "accounting")
"""Causes of time that measuring takes."""


@dataclass
class Epoch:
    """One epoch: mean loss, test accuracy at its end (percent), training seconds since the run began.

    `accuracy` is of the run's metric, whatever that is; `figures` are others of the same test, percent.
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class MorphEvent:
    """One change of size, before `epoch`: test accuracy before and right after (percent), and its time.

    `correlations` is what `FeatureMaps` saw where channels came in.
    """

    epoch: int
    accuracy_before: float
    accuracy_after: float
    seconds: float
    total_seconds: float
    correlations: dict[str, Any] | None = None


@dataclass
class StageCost:
    """One stage of a run.

    Attributes:
        epoch: its first.
        resolution: height and width of its sub-network's input.
        parameters: of the sub-network.
        training_flops: of a step of `batch_size` images; in a search the mean over the candidates that ran.
        batch_size: images in a step; the last of an epoch may have fewer.
        searching: whether it is an elastic supernet, whose candidates run in turn.
        steps: how many were taken.
        images: of all of them.
        inference_flops: of one image.
        normalisation: bytes that normalisation moves in such a step, see `NormalisationTraffic`.
        layers: convolution and linear layers of the sub-network.
        memory: bytes of such a step; None where it was not counted.
        gated: share of the FLOPs that channel gating would leave, see `gated_share`; None in runs that do not prune.
    """

    epoch: int
    resolution: tuple[int, int] | None
    parameters: int
    training_flops: int
    batch_size: int
    searching: bool = False
    steps: int = 0
    images: int = 0
    inference_flops: int = 0
    normalisation: int = 0
    layers: int = 0
    memory: int | None = None
    gated: float | None = None

    def add(self, steps: int, images: int, flops: int) -> None:
        """Steps were taken, with so many images and FLOPs together."""
        before, self.steps, self.images = self.images, self.steps + steps, self.images + images
        self.training_flops = (self.training_flops * before + flops * self.batch_size) // self.images


@dataclass
class LayerDensity:
    """What is left of a layer of the dense network.

    Attributes:
        layer: its path.
        channels: share of its weights that the remaining input and output channels hold.
        weights: share of its weights that are there and not near zero.
    """

    layer: str
    channels: float
    weights: float


@dataclass
class PrunedRun:
    """What a run that prunes notes besides.

    Attributes:
        dense: what the dense network costs, and the steps that it would take for as many epochs.
        threshold: a channel, or a weight, counts as zero below it.
        coefficient: lambda of the group lasso; None before its first batch, and where there is no lasso.
        sparsity: for each layer that is mapped and each epoch, the largest absolute weight of every output channel of
            the dense layer at the epoch's end, 0 where it has been taken out.
        density: of every layer at the end.
        inference: speed at the end.
    """

    dense: StageCost
    threshold: float
    coefficient: float | None = None
    sparsity: dict[str, list[list[float]]] = field(default_factory=dict)
    density: list[LayerDensity] = field(default_factory=list)
    inference: list[InferenceSpeed] = field(default_factory=list)


@dataclass
class _Clock:
    """A piece of a run that is being timed."""

    cause: str
    device: torch.device
    start: float
    inside: float = 0.0
    """Seconds of clocks inside it that are not taken off yet."""


@dataclass
class Ledger:
    """All figures of one run, filled while it goes on."""

    method: str
    model: str
    data: str
    seed: int
    metric: str = "accuracy"
    """What the test measures, in percent: all that is called accuracy here is of it."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*TRAINING, *BESIDE), 0.0))
    epochs: list[Epoch] = field(default_factory=list)
    morphs: list[MorphEvent] = field(default_factory=list)
    stages: list[StageCost] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    dense: dict[str, Any] | None = None
    """The dense network, as those of the history."""
    searches: list[dict[str, Any]] = field(default_factory=list)
    rescues: list[dict[str, Any]] = field(default_factory=list)
    """Epoch and option of each stage that was put off, and what had gone wrong."""
    schedule: dict[str, Any] | None = None
    predicted_speedup: float | None = None
    """Dense time by this run's, from the step times that its searches measured."""
    peak_memory: int = 0
    protocol: str = ""
    """How the test images are shown."""
    average: float | None = None
    """Decay of the moving average that was tested, the best of several; None for the weights themselves."""
    tested_at: dict[str, Any] | None = None
    """Size and accuracy at another size of the test images; None where the recipe has none."""
    kept: dict[str, Any] | None = None
    """Epoch and accuracy of the network that was kept as the best; None where none was."""
    pruned: PrunedRun | None = None
    """None for a run that does not prune."""
    stopped: str | None = None
    """Why the run ended early; None for a finished one."""
    _clocks: list[_Clock] = field(default_factory=list)
    """Those that run, the innermost last."""

    @contextmanager
    def clock(self, cause: str, device: torch.device) -> Iterator[None]:
        """Time a piece of the run under its cause, with the device idle at both ends; what a clock inside it counts is
        that one's alone."""
        self._clocks.append(_Clock(cause, device, now(device)))
        try:
            yield
        finally:
            self._read(len(self._clocks) - 1)
            self._clocks.pop()

    def read_clocks(self) -> None:
        """Bring `seconds` up to this moment."""
        for number in reversed(range(len(self._clocks))):
            self._read(number)

    def _read(self, number: int) -> None:
        """Put what a clock has counted on its account, and take it off that of the clock around it."""
        clock = self._clocks[number]
        time = now(clock.device)
        counted, clock.start = time - clock.start, time
        self.seconds[clock.cause] += counted - clock.inside
        clock.inside = 0.0
        if number:
            self._clocks[number - 1].inside += counted

    @property
    def training_seconds(self) -> float:
        """Everything a user waits for but evaluation, and what is counted and measured for the report."""
        return sum(self.seconds[cause] for cause in TRAINING)

    @property
    def flops(self) -> int:
        """FLOPs of all training steps; those of comparing candidates are not among them."""
        return sum(stage.training_flops * stage.images // stage.batch_size for stage in self.stages)

    @property
    def samples(self) -> int:
        """Images of all training steps."""
        return sum(stage.images for stage in self.stages)

    @property
    def accuracy(self) -> float | None:
        """Test accuracy after the last epoch, percent; None before the first is over."""
        return self.epochs[-1].accuracy if self.epochs else None

    def note_memory(self, device: torch.device) -> None:
        """Peak bytes so far: of the allocator on CUDA, of the whole process on a CPU."""
        if device.type == "cuda":  # whose own figure begins anew in every epoch of a dynamic mini-batch
            self.peak_memory = max(self.peak_memory, torch.cuda.max_memory_allocated(device))
        else:
            self.peak_memory = max(self.peak_memory, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    def record(self) -> dict[str, Any]:
        """One record of JSON types; `compare` adds speedups against the dense run."""
        return {
            "method": self.method,
            "model": self.model,
            "data": self.data,
            "seed": self.seed,
            "metric": self.metric,
            "accuracy": self.accuracy,
            "stopped": self.stopped,
            "training_seconds": self.training_seconds,
            "seconds": dict(self.seconds),
            "flops": self.flops,
            "samples": self.samples,
            "peak_memory": self.peak_memory,
            "protocol": self.protocol,
            "average": self.average,
            "tested_at": self.tested_at,
            "kept": self.kept,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "morphs": [asdict(event) for event in self.morphs],
            "stages": [asdict(stage) for stage in self.stages],
            "history": self.history,
            "dense": self.dense,
            "searches": self.searches,
            "rescues": self.rescues,
            "schedule": self.schedule,
            "predicted_speedup": self.predicted_speedup,
            "pruned": None if self.pruned is None else asdict(self.pruned),
        }

    def become(self, other: Ledger) -> None:
        """Take over all that another one says; clocks that run here go on."""
        for entry in fields(self):
            if entry.name != "_clocks":
                setattr(self, entry.name, getattr(other, entry.name))

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Ledger:
        """The inverse of `record`."""

        def stage(data: Mapping[str, Any]) -> StageCost:
            size = data["resolution"]
            return StageCost(**{**data, "resolution": None if size is None else (int(size[0]), int(size[1]))})

        pruned = record["pruned"]
        plain = "method model data seed history dense searches rescues schedule predicted_speedup stopped".split()
        plain += "protocol average tested_at".split()
        return Ledger(
            **{key: record[key] for key in (*plain, "peak_memory")},
            metric=record.get("metric", "accuracy"),
            kept=record.get("kept"),
            seconds=dict(record["seconds"]),
            epochs=[Epoch(**data) for data in record["epochs"]],
            morphs=[MorphEvent(**data) for data in record["morphs"]],
            stages=[stage(data) for data in record["stages"]],
            pruned=None
            if pruned is None
            else PrunedRun(
                **{
                    **pruned,
                    "dense": stage(pruned["dense"]),
                    "density": [LayerDensity(**data) for data in pruned["density"]],
                    "inference": [InferenceSpeed(**data) for data in pruned["inference"]],
                }
            ),
        )


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware, versions and commit that figures are true for."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "morphogen": __version__,
        "commit": commit,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []

"""What studies have measured of the accuracy that a method ends with, against the dense network.

Every figure is in the file that its study names, run by run; `tests/test_recommend.py` reads them there again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from statistics import fmean, stdev
from typing import Literal

from torch import nn

Kind = Literal["convolutional network with batch norm", "vision transformer", "other network"]

CNN: Kind = "convolutional network with batch norm"
VIT: Kind = "vision transformer"
OTHER: Kind = "other network"


@dataclass(frozen=True)
class Study:
    """One method beside dense training.

    Attributes:
        kind: of network.
        method: as it is written.
        network, data: what was trained, on what.
        epochs: length of the dense runs.
        dense, ours: test accuracy in percent, one figure a seed.
        where: the folder of the runs.
        stretch: how many times as many epochs the method's runs have as the dense ones.
    """

    kind: Kind
    method: str
    network: str
    data: str
    epochs: int
    dense: tuple[float, ...]
    ours: tuple[float, ...]
    where: str
    stretch: float = 1.0

    @property
    def gap(self) -> float:
        """Points of accuracy that the method ends above dense training."""
        return fmean(self.ours) - fmean(self.dense)

    @property
    def error(self) -> float | None:
        """Standard error of the gap, in points; None where either has one seed."""
        if min(len(self.ours), len(self.dense)) < 2:
            return None
        return (stdev(self.ours) ** 2 / len(self.ours) + stdev(self.dense) ** 2 / len(self.dense)) ** 0.5

    def __str__(self) -> str:
        spread = "" if self.error is None else f" ± {self.error:.1f}"
        seeds = f"{len(self.ours)} seed{'s' if len(self.ours) > 1 else ''}"
        length = f"{self.epochs} epochs"
        if self.stretch != 1:
            length = f"{round(self.epochs * self.stretch)} epochs against {self.epochs}"
        return f"{self.gap:+.1f}{spread} points ({self.network}, {self.data}, {length}, {seeds})"


_RESNET, _VIT = "ResNet-8 of 64 to 256 channels", "ViT of 8 blocks of 64"
_DENSE_VIT = (40.48, 38.84, 41.80)
_PRUNED = "benchmarks/results/prunetrain"
_OPERATORS = "benchmarks/results/growth_operators"


def _on_gpu(kind: Kind, method: str, network: str, dense: tuple[float, ...], ours: tuple[float, ...]) -> Study:
    return Study(kind, method, network, "CIFAR-10, 25,000 images", 40, dense, ours, "benchmarks/results/gpu")


def _of_vit(method: str, ours: tuple[float, ...]) -> Study:
    return Study(VIT, method, _VIT, "CIFAR-10, 5,000 images", 12, _DENSE_VIT, ours, _OPERATORS)


def _grow_once(kind: Kind, method: str, ours: tuple[float, ...], stretch: float = 1.0) -> Study:
    network, dense, where = (
        ("ResNet-8 of 32 to 128 channels", (69.80, 69.21, 70.26, 70.31, 69.26), "benchmarks/results/grow_once_resnet")
        if kind == CNN
        else (_VIT, (50.62, 51.8, 51.64, 51.84, 51.68), "benchmarks/results/grow_once_vit")
    )
    return Study(kind, method, network, "CIFAR-10, 10,000 images", 12, dense, ours, where, stretch)


STUDIES = (
    _on_gpu(CNN, "GrowOnce(resolution=0.625)", _RESNET, (84.40, 84.62), (85.18,)),
    _on_gpu(VIT, "GrowOnce(resolution=0.625, depth=0.25)", _VIT, (68.40, 68.11), (69.23,)),
    _grow_once(CNN, "GrowOnce", (71.84, 71.35, 70.86, 71.67, 71.71), 1.5),
    _grow_once(CNN, "GrowOnce(resolution=0.625)", (69.54, 68.88, 68.80, 70.52, 69.46)),
    _grow_once(VIT, "GrowOnce", (52.46, 51.7, 51.32, 51.44, 50.96), 1.5),
    _grow_once(VIT, "GrowOnce(resolution=0.625)", (50.38, 50.12, 50.06, 51.68, 51.26)),
    _grow_once(VIT, "GrowOnce(resolution=0.625, depth=0.25)", (46.52, 47.14, 46.58)),
    _grow_once(VIT, "EfficientTrain", (49.28, 49.68, 49.06)),
    _grow_once(VIT, "ProgressiveResizing", (50.7, 50.8, 50.34)),
    _of_vit("Prog", (38.64, 40.68, 40.20)),
    _of_vit("Prog(depth_operator='identity')", (40.80, 42.56, 41.00)),
    _of_vit("StackBERT", (38.24, 40.00, 41.12)),
    _of_vit("ProgStack", (40.92, 39.24, 41.20)),
    Study(
        CNN,
        "GrowOnce",
        "ResNet-8 of 16 to 64 channels",
        "CIFAR-10, 25,000 images",
        40,
        (80.19, 80.02, 80.33, 80.69, 79.76),
        (79.7, 80.01, 80.1, 79.74, 80.18),
        "benchmarks/results/grow_once_plateau",
        1.5,
    ),
    Study(
        CNN,
        "PruneEarly",
        "ResNet-8 of 32 to 128 channels",
        "CIFAR-10 at 16 x 16, 10,000 images",
        20,
        (70.98, 71.7, 71.72),
        (69.32, 69.34, 70.12),
        "benchmarks/results/prune_early",
    ),
    Study(
        CNN,
        "PruneTrain(ratio=0.7, interval=3, proximal=True)",
        _RESNET,
        "CIFAR-10, 3,000 images",
        60,
        (54.45, 53.80, 53.85),
        (57.50, 54.10, 54.85),
        _PRUNED,
    ),
)


STRETCHED = {"GrowOnce": 1.5}
"""Methods that are to have more epochs than dense training, also on networks of which there is no study."""


def length_of(kind: Kind, method: str, epochs: int) -> int:
    """Epochs that a method is to have where dense training has `epochs`: as many times more as in its study."""
    study = studied(kind, method, epochs)
    return round(epochs * (STRETCHED.get(method, 1.0) if study is None else study.stretch))


def kind_of(model: nn.Module) -> Kind:
    """The kind of network that a study speaks for: by where most weights are, and how they are normalised."""
    modules = list(model.modules())
    linear = sum(module.weight.numel() for module in modules if isinstance(module, nn.Linear))
    convolutions = sum(module.weight.numel() for module in modules if isinstance(module, nn.Conv2d))
    norms = {type(module).__name__ for module in modules}
    if convolutions > linear and any("BatchNorm" in name for name in norms):
        return CNN
    if linear > convolutions and any(name.endswith(("LayerNorm", "RMSNorm")) for name in norms):
        return VIT
    return OTHER


def studied(kind: Kind, method: str, epochs: int, studies: Iterable[Study] = STUDIES) -> Study | None:
    """The study of a method on that kind of network, the nearest in length; None where there is none."""
    found = [study for study in studies if (study.kind, study.method) == (kind, method)]
    return min(found, key=lambda study: abs(log(study.epochs / epochs)), default=None)

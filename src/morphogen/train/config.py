"""The settings of each command: the same keys on the command line, in YAML and in Python."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import ConfigError
from ..plan.recommend import CANDIDATES
from .recipe import Recipe

Tracker = Literal["tensorboard", "wandb"]

DEMO = Recipe(model="resnet8(width=32)", data="clutter")
"""What is trained where nothing is named: a question that is open for two minutes on a laptop."""


@dataclass(frozen=True)
class TrainConfig(Recipe):
    """One run.

    Attributes:
        method: such as `NetworkExpansion(width=0.5, stages=5, operator='orthogonal')` or `Dense`.
        seed: of the weights, the data order and the augmentation.
        output: folder for the weights, the ledger and the checkpoints.
        resume: continue the run in the output folder from its latest checkpoint; without one, start it. A finished run
            stays as it is.
        overwrite: remove the run that is in the output folder, and start over. Without either, a folder that holds a
            run is refused.
        save_every: seconds between checkpoints; 0 saves after every step.
        keep: checkpoints that stay.
        keep_best: keep the network that was best in the test as `best.pt`, at the size that it had then;
            `morphogen export RUN --best` and `predict` take it. It is chosen by the test: report on images of others.
        patience: stop after so many epochs without a better test; 0 is never. They count from the last change of size,
            and none is counted while the network has a stage to come, so that it ends at its full size.
        track: where else to write each epoch and each morph: `tensorboard`, `wandb` (offline unless WANDB_MODE says
            otherwise); both into the output folder.
    """

    model: str = DEMO.model
    data: str = DEMO.data
    method: str = "GrowOnce"
    seed: int = 0
    output: Path = Path("runs/train")
    resume: bool = False
    overwrite: bool = False
    save_every: float = 300.0
    keep: int = 2
    keep_best: bool = False
    patience: int = 0
    track: list[Tracker] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 2**31:
            raise ConfigError("seed out of range", expected="0 to 2147483647", found=f"{self.seed}")
        if self.resume and self.overwrite:
            raise ConfigError("a run cannot be both resumed and removed", expected="resume or overwrite", found="both")
        if not self.save_every >= 0 or self.keep < 1 or self.patience < 0:
            raise ConfigError(
                "out of range",
                expected="save_every at least 0, keep at least 1, patience at least 0",
                found=f"save_every {self.save_every}, keep {self.keep}, patience {self.patience}",
            )


@dataclass(frozen=True)
class CompareConfig(Recipe):
    """Methods side by side with the dense baseline.

    Attributes:
        table: a whole table of a paper, such as `network-expansion/4`, its figures beside what is measured.
        methods: what to compare with dense training.
        seeds: runs of each.
        first_seed: of these runs, so that several machines can share the work.
        budgets: lengths of complete runs as shares of epochs, 1 among them, such as `[0.3, 0.5, 0.75, 1]`: the speedup
            is read off at equal accuracy. By default all runs are of full length.
        stretch: how many times as many epochs the methods' runs have as the dense ones, at least 1: with 1.5 a method
            spends a part of the time that it saves on half as many epochs again.
        parallel: runs at a time, each in a process of its own, with budgets; times are then made of step times that
            are taken when all runs are over.
        output: folder for the results; finished runs found there are kept, others continue where they stopped.
        overwrite: remove the comparison that is in the output folder, and start over.
    """

    table: str = ""
    model: str = DEMO.model
    data: str = DEMO.data
    methods: list[str] = field(default_factory=lambda: ["GrowOnce"])
    seeds: int = 1
    first_seed: int = 0
    budgets: list[float] = field(default_factory=list)
    stretch: float = 1.0
    parallel: int = 1
    output: Path = Path("runs/compare")
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1 or self.first_seed < 0 or not (self.methods or self.budgets or self.recipe):
            raise ConfigError(
                "nothing to compare",
                expected="at least one method and one seed, from 0 on",
                found=f"{len(self.methods)} methods, {self.seeds} seeds from {self.first_seed} on",
            )
        if len(set(self.methods)) < len(self.methods) or "Dense" in self.methods:
            raise ConfigError(
                "a method is there twice", expected="each once; Dense is always there", found=", ".join(self.methods)
            )
        lengths = [round(budget * self.epochs) if math.isfinite(budget) else 0 for budget in self.budgets]
        if self.budgets and (1 not in self.budgets or min(lengths) < 1 or len(set(lengths)) < len(lengths)):
            raise ConfigError(
                "budgets out of range",
                expected=f"shares of {self.epochs} epochs, 1 among them, each of another number of epochs",
                found=f"{self.budgets}, which is {lengths} epochs",
            )
        if not 1 <= self.stretch <= 10:
            raise ConfigError("stretch out of range", expected="1 to 10", found=f"{self.stretch}")
        if self.parallel < 1 or (self.parallel > 1 and (not self.budgets or self.compile)):
            raise ConfigError(
                "parallel out of range",
                expected="1, or more with budgets and without compile, whose steps are not timed apart",
                found=f"{self.parallel}",
            )

    def epochs_of(self, label: str, budget: float = 1.0) -> int:
        """How long a run is: the dense network's as its budget says, a method's stretched."""
        return round(budget * self.epochs * (1 if label == "Dense" else self.stretch))

    @property
    def all_seeds(self) -> range:
        """The seeds of the runs."""
        return range(self.first_seed, self.first_seed + self.seeds)


@dataclass(frozen=True)
class PlanConfig(Recipe):
    """What a method would save on this device. Of the recipe, what changes the time of a step counts.

    Attributes:
        data: as for training; without it images are random, of `image_size` (224), and loading takes no time.
        images: without data, how many training images there would be, for the time of the run.
        method: such as `Prog(ratio=0.5)`.
        num_classes: number of outputs without data.
        seconds: how long to measure; tracing and morphs take time on top.
        json: print JSON instead of tables.
    """

    data: str = ""
    method: str = "GrowOnce"
    num_classes: int = 1000
    seconds: float = 60.0
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1 or not self.seconds > 0:
            raise ConfigError(
                "out of range",
                expected="num_classes at least 1, seconds above 0",
                found=f"{self.num_classes} and {self.seconds}",
            )


@dataclass(frozen=True)
class RecommendConfig(Recipe):
    """Which method to train with on this device.

    Attributes:
        data: as for training; without it images are random, of `image_size` (224), and loading takes no time.
        images: without data, how many training images there would be, for the time of the run.
        methods: to choose among.
        num_classes: number of outputs without data.
        seconds: to measure for, all methods together; tracing and morphs come on top.
        json: print JSON instead of tables.
    """

    data: str = ""
    methods: list[str] = field(default_factory=lambda: list(CANDIDATES))
    num_classes: int = 1000
    seconds: float = 120.0
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1 or not self.seconds > 0 or not self.methods:
            raise ConfigError(
                "out of range",
                expected="num_classes at least 1, seconds above 0, one method at least",
                found=f"{self.num_classes}, {self.seconds} and {len(self.methods)} methods",
            )


@dataclass(frozen=True)
class LabelMapsConfig:
    """What a teacher sees at each place of each training image, for token labelling.

    Attributes:
        data: a folder with `train/CLASS/`, or `imagenet:FOLDER`.
        teacher: a timm name, which is fetched with its weights, or such as
            `resnet50(checkpoint_path='weights.safetensors', num_classes=10)`.
        output: folder for the maps; those found there are kept, not made again.
        top_k: classes kept at each place.
        image_size: side of the teacher's input in pixels, by default its own; 576 gives the paper's 18 x 18 places
            with a network that divides by 32.
        batch_size: images at once.
        workers: processes that decode images.
        device: `auto` takes a GPU where there is one.
    """

    data: str
    teacher: str
    output: Path
    top_k: int = 5
    image_size: int | None = None
    batch_size: int = 64
    workers: int = 2
    device: str = "auto"

    def __post_init__(self) -> None:
        least = {"top_k": 1, "image_size": 8, "batch_size": 1, "workers": 0}
        for key, lowest in least.items():
            value = getattr(self, key)
            if value is not None and value < lowest:
                raise ConfigError(f"{key} out of range", expected=f"at least {lowest}", found=f"{value}")


@dataclass(frozen=True)
class ExportConfig:
    """What to write of a trained network.

    Attributes:
        run: output folder of `morphogen train`, with its `model.pt`.
        model: how its model was built, as in train, where that was code of your own: what a file names is not run.
        best: take `best.pt`, which `train --keep_best` left, in place of `model.pt`.
        output: folder for the files, by default the run's own.
        onnx: write `model.onnx` too, for batches of any size at the resolution it was trained to.
        program: write `model.pt2` too, likewise, which `torch.export.load` reads.
        overwrite: replace files that hold another network. Without it, a folder that has them is refused.
    """

    run: str = "runs/train"
    model: str | None = None
    best: bool = False
    output: Path | None = None
    onnx: bool = False
    program: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class PredictConfig:
    """What to predict.

    Attributes:
        given: output folder of `morphogen train`, or an ONNX file that `export` wrote; then images, or folders of them.
        model: how its model was built, as in train, where that was code of your own: what a file names is not run.
        best: take `best.pt`, which `train --keep_best` left.
        top: classes, or objects, of each image, the best first.
        format: a line an image, or JSON, or a CSV file with a row for each class or object of each image.
        picture: of a detector, a picture to draw the boxes into that have a score of 0.3 or more (16 images at most).
        output: file to write; by default it is printed.
        batch_size: images at once.
    """

    given: list[str]
    model: str | None = None
    best: bool = False
    top: int = 5
    picture: Path | None = None
    format: Literal["text", "json", "csv"] = "text"
    output: Path | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        if len(self.given) < 2:
            raise ConfigError("no images are given", expected="RUN IMAGE...", found=" ".join(self.given))
        if self.top < 1 or self.batch_size < 1:
            raise ConfigError(
                "out of range", expected="top and batch_size at least 1", found=f"{self.top} and {self.batch_size}"
            )

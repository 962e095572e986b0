"""Each image has objects: boxes with a class."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ...dense.network import Network
from ...errors import ConfigError
from ...machine.randomness import own_random
from ...machine.ranks import gathered
from ...report.predictions import Drawn, draw_boxes
from .task import Beside, Predict, Swapped, Task

PICTURE = "prediction.png"
SHOWN, SURE = 4, 0.3
"""Images in the picture of predictions, and the score from which a box is drawn."""

GROUND = "background"
"""The name of class 0, which no box has; torchvision's detectors count from 1."""

MORE = ("mask", "keypoint")
"""What else torchvision's detectors may learn."""

Objects = dict[str, Tensor]
"""Of one image as torchvision has it: `boxes` (K, 4), float32, left, top, right, bottom in pixels, and `labels` (K,),
int64; of a prediction `scores` (K,), of the truth in tests `iscrowd` (K,)."""


class Boxes(NamedTuple):
    """The objects of N images, M in all.

    Attributes:
        counts: (N,), int64: how many each image has.
        boxes: (M, 4), float32: left, top, right, bottom, as shares of the image's sides, so that they hold at every
            resolution.
        labels: (M,), int64: the class, from 1.
        crowd: (M,), bool: a crowd of objects, which is not learnt, and neither hit nor missed in tests.
    """

    counts: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor

    @staticmethod
    def of(images: Sequence[Boxes]) -> Boxes:
        """Those of several together."""
        return Boxes(*(torch.cat(tensors) for tensors in zip(*images, strict=True)))

    def to(self, device: torch.device, non_blocking: bool = False) -> Boxes:
        """All of it on a device, as `Tensor.to`."""
        return Boxes(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))

    def each(self) -> list[Boxes]:
        """Those of each image."""
        counts = self.counts.tolist()
        return [
            Boxes(count[None], *some)
            for count, *some in zip(self.counts, *(tensor.split(counts) for tensor in self[1:]), strict=True)
        ]

    def flipped(self) -> Boxes:
        """Mirrored left to right."""
        left, top, right, bottom = self.boxes.unbind(1)
        return self._replace(boxes=torch.stack([1 - right, top, 1 - left, bottom], 1))

    def in_pixels(self, height: int, width: int) -> list[Objects]:
        """Of each image, as torchvision has them."""
        sides = torch.tensor([width, height, width, height], device=self.boxes.device)
        return [{"boxes": one.boxes * sides, "labels": one.labels, "iscrowd": one.crowd.long()} for one in self.each()]


class AsGiven(GeneralizedRCNNTransform):
    """Normalises images and lets them keep their size: the data bring images and boxes to the resolution that runs."""

    def resize(self, image: Tensor, target: Objects | None = None) -> tuple[Tensor, Objects | None]:
        """As it is."""
        return image, target


@dataclass(frozen=True)
class Detection(Task):
    """The sum of a detector's own losses; tested by mean average precision as COCO has it.

    What is traced, and changes its size, is the detector's backbone with the neck that is in it. Its outputs keep their
    channels, so that heads and anchors stay. The detector is one of torchvision's, or of one's own that is called like
    them and has their `backbone` and `transform`.
    """

    metric: ClassVar[str] = "mAP"
    part: ClassVar[str] = "backbone"
    boxes: ClassVar[bool] = True

    @staticmethod
    def prepare(model: nn.Module) -> None:
        """Images reach the backbone as large as the data give them, whatever size the detector was built for."""
        found = {name: type(getattr(model, name, None)) for name in ("backbone", "transform")}
        if not (issubclass(found["backbone"], nn.Module) and issubclass(found["transform"], GeneralizedRCNNTransform)):
            raise ConfigError(
                "the model is no detector",
                where=type(model).__name__,
                expected="one of torchvision's, or called like them, with `backbone` and `transform`",
                found=", ".join(f"{name} {kind.__name__}" for name, kind in found.items()),
                todo="Try --model retinanet_resnet8, or torchvision:fasterrcnn_mobilenet_v3_large_320_fpn",
            )
        if any(getattr(model, "roi_heads", None) and getattr(model.roi_heads, f"has_{what}")() for what in MORE):
            raise ConfigError(
                "the model learns masks or keypoints too, and the data have boxes alone",
                where=type(model).__name__,
                todo="Take the Faster R-CNN of the same backbone",
            )
        theirs: Any = model.transform
        model.transform = AsGiven(0, 0, theirs.image_mean, theirs.image_std, size_divisible=1)

    def check(self, network: Network, images: int) -> None:
        """What a detector returns in training shows when it is called."""

    def loss(self, model: nn.Module, images: Tensor, targets: Boxes, swapped: Swapped = nullcontext) -> Tensor:
        """Sum of the detector's losses; crowds are not learnt."""
        truth = targets.in_pixels(*images.shape[-2:])
        learnt = [{name: each[name][each["iscrowd"] == 0] for name in ("boxes", "labels")} for each in truth]
        losses = model(list(images), learnt)
        if not (isinstance(losses, Mapping) and losses and all(_is_number(each) for each in losses.values())):
            raise ConfigError(
                "the detector returns no losses in training",
                where=type(model).__name__,
                expected="a dictionary of numbers, from detector(images, targets)",
                found=type(losses).__name__,
            )
        return torch.stack([each.float() for each in losses.values()]).sum()

    def beside(self, model: nn.Module, size: tuple[int, int] | None) -> Beside:
        """Heads, counted in a step of a copy on two images of noise with a box each. What a head does with boxes that
        it proposes itself depends on the images a little."""
        model, side = copy.deepcopy(model).train(), size or (0, 0)
        device = next(model.parameters()).device
        box = torch.tensor([[0.25, 0.25, 0.75, 0.75]] * 2)
        targets = Boxes(torch.tensor([1, 1]), box, torch.tensor([1, 1]), torch.zeros(2, dtype=torch.bool)).to(device)
        with own_random(device), torch.enable_grad(), FlopCounterMode(display=False) as counter:
            loss = self.loss(model, torch.rand(2, 3, *side, device=device), targets)
            forward = _outside(counter, model)
            loss.backward()
        parameters = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(f"{self.part}."))
        return Beside(parameters, forward // 2, _outside(counter, model) // 2)

    def pieces(self, targets: Boxes, count: int) -> list[Boxes]:
        """The boxes of the same images."""
        each, numbers = targets.each(), torch.arange(len(targets.counts)).chunk(count)
        return [Boxes.of([each[number] for number in some.tolist()]) for some in numbers]

    def evaluate(
        self, predict: Predict, batches: Iterable[tuple[Tensor, Any]], device: torch.device
    ) -> dict[str, float]:
        """Mean average precision over the classes and ten thresholds of intersection over union, 0.5 to 0.95, and that
        at 0.5 alone."""
        found: list[tuple[Objects, Objects]] = []
        for images, targets in batches:
            truth = targets.in_pixels(*images.shape[-2:])
            found += [(_on_cpu(said), _on_cpu(true)) for said, true in zip(_said(predict, images), truth, strict=True)]
        figures = mean_average_precision([pair for part in gathered(found) for pair in part])
        return {self.metric: 100 * figures["map"], "mAP at 0.5": 100 * figures["map_50"]}

    def draw(
        self,
        predict: Predict,
        batches: Iterable[tuple[Tensor, Any]],
        statistics: Mapping[str, Tensor],
        folder: Path,
        names: Sequence[str] = (),
    ) -> list[Path]:
        """`prediction.png`: true boxes and those found, of a few test images."""
        rows: list[list[Drawn]] = []
        for images, targets in batches:
            truth = targets.in_pixels(*images.shape[-2:])
            for image, true, said in zip(images.cpu(), truth, _said(predict, images), strict=True):
                rows.append([Drawn(image, **labelled(_on_cpu(each), names)) for each in (true, said)])
            if len(rows) >= SHOWN:
                break
        draw_boxes(rows[:SHOWN], ("truth", f"found, of score {SURE:g} or more"), folder / PICTURE)
        return [folder / PICTURE]


def mean_average_precision(pairs: Sequence[tuple[Objects, Objects]]) -> dict[str, float]:
    """`map` and `map_50` of predictions and truths, 0 to 1, by torchmetrics on pycocotools.

    Raises:
        ConfigError: one of the packages is not installed.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(backend="pycocotools", sync_on_compute=False)
    except ImportError as error:
        raise ConfigError(
            "mAP needs torchmetrics and pycocotools", where="detection", todo="pip install 'morphogen[tasks]'"
        ) from error
    metric.warn_on_many_detections = False
    metric.update([found for found, _ in pairs], [truth for _, truth in pairs])
    figures = metric.compute()
    return {name: float(figures[name]) for name in ("map", "map_50")}


def labelled(objects: Objects, names: Sequence[str]) -> dict[str, Any]:
    """Boxes to draw and what is written at them: the class, and of predictions the score, where it is high enough."""
    scores = objects.get("scores")
    sure = torch.ones(len(objects["labels"]), dtype=torch.bool) if scores is None else scores >= SURE
    words = [names[label] if label < len(names) else str(label) for label in objects["labels"][sure].tolist()]
    if scores is not None:
        words = [f"{word} {100 * score:.0f} %" for word, score in zip(words, scores[sure].tolist(), strict=True)]
    return {"boxes": objects["boxes"][sure], "words": words}


def _outside(counter: FlopCounterMode, model: nn.Module) -> int:
    """FLOPs counted so far, without those of the backbone."""
    counts = {module: sum(ops.values()) for module, ops in counter.get_flop_counts().items()}
    return counts["Global"] - counts.get(f"{type(model).__name__}.{Detection.part}", 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _said(predict: Predict, images: Tensor) -> list[Objects]:
    """What a detector finds in each image; raises ConfigError where it returns anything else."""
    found = predict(images)
    keys = {"boxes", "labels", "scores"}
    if not (isinstance(found, list) and all(isinstance(each, dict) and keys <= each.keys() for each in found)):
        raise ConfigError(
            "the detector names no boxes in evaluation",
            expected="a list of dictionaries, one an image, with boxes, labels and scores",
            found=type(found).__name__,
        )
    return found


def _on_cpu(objects: Objects) -> Objects:
    return {name: (t.float() if t.is_floating_point() else t).cpu() for name, t in objects.items()}

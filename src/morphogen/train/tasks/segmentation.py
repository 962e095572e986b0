"""Each pixel of an image has a class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...dense.network import Network
from ...errors import ConfigError, first_line
from ...parts.resizing import Size
from ...report.predictions import draw_masks
from ...run.images import nearest
from .task import Predict, Swapped, Task, described, name_of, output_in_training

IGNORED = 255
"""The label of pixels that are neither learnt nor tested."""

AUXILIARY = 0.4
"""Weight of the loss of an auxiliary head (PSPNet, Zhao et al., CVPR 2017, section 3.3)."""

SIDE = 32
"""Whole images are padded to a multiple of it in tests: what encoders divide by at most."""

PICTURE = "prediction.png"
SHOWN = 4
"""Images in the picture of predictions."""


@dataclass(frozen=True)
class Segmentation(Task):
    """Cross entropy against masks (N, H, W), uint8, the mean over all pixels that are not ignored.

    Masks follow the images to the resolution that runs, each pixel the class at its centre (nearest neighbour). The
    other way, outputs brought up to masks of full size, computes as large a loss at every resolution, of an output
    that is no finer for it.

    Attributes:
        whole: height and width of a test image.
    """

    metric: ClassVar[str] = "mIoU"
    predicts: ClassVar[bool] = False
    whole: Size = (SIDE, SIDE)

    def check(self, network: Network, images: int) -> None:
        """The model must give maps of the classes, of training crops and of whole test images."""
        expected = (
            f"maps of shape (images, {self.classes}, height, width) that the parameters have a gradient of, alone or "
            "as `out` in a dictionary, where `aux` may be another"
        )
        output = output_in_training(network, images, expected)
        found = output if isinstance(output, Mapping) else {"out": output}
        for maps in (found.get("out"), *([found["aux"]] if "aux" in found else [])):
            fits = isinstance(maps, Tensor) and maps.ndim == 4 and maps.shape[1] == self.classes
            if not (fits and maps.is_floating_point() and maps.requires_grad):  # pyright: ignore  (a tensor)
                raise ConfigError(
                    "the model's output in training gives no maps of the classes",
                    where=name_of(network),
                    expected=expected,
                    found=described(maps),
                )
        whole = tuple(-(-side // SIDE) * SIDE for side in self.whole)
        try:
            network.fake.run(network.sketch(network.dense).eval(), (whole[0], whole[1]), 1)
        except Exception as error:  # whatever the model's own code raises
            raise ConfigError(
                f"the model takes crops, and not whole images of {whole[0]} x {whole[1]} pixels ({first_line(error)})",
                where=name_of(network),
                expected=f"one that takes any sides that are multiples of {SIDE}, since tests are on whole images",
            ) from error

    def loss(self, model: nn.Module, images: Tensor, targets: Any, swapped: Swapped = nullcontext) -> Tensor:
        """Of the map, and of that of an auxiliary head where the model has one."""
        output = model(images)
        masks = nearest(targets, images.shape[-2:]).long()
        loss = self._cross_entropy(maps_of(output, images), masks)
        if isinstance(output, Mapping) and "aux" in output:
            loss = loss + AUXILIARY * self._cross_entropy(_at(output["aux"], images.shape[-2:]), masks)
        return loss

    def _cross_entropy(self, maps: Tensor, masks: Tensor) -> Tensor:
        """Mean over the pixels that are not ignored; 0 where all are."""
        total = F.cross_entropy(
            maps.float(), masks, ignore_index=IGNORED, label_smoothing=self.smoothing, reduction="sum"
        )
        return total / (masks != IGNORED).sum().clamp_min(1)

    def evaluate(
        self, predict: Predict, batches: Iterable[tuple[Tensor, Any]], device: torch.device
    ) -> dict[str, float]:
        """Mean over the classes of intersection over union, of all pixels of the test set, at the size of its masks."""
        from torchmetrics.classification import MulticlassJaccardIndex

        metric = MulticlassJaccardIndex(self.classes, ignore_index=IGNORED, validate_args=False).to(device)
        for images, masks in batches:
            metric.update(segmented(predict, images, masks.shape[-2:]), masks.long())
        return {self.metric: 100 * float(metric.compute())}

    def draw(
        self,
        predict: Predict,
        batches: Iterable[tuple[Tensor, Any]],
        statistics: Mapping[str, Tensor],
        folder: Path,
        names: Sequence[str] = (),
    ) -> list[Path]:
        """`prediction.png`: image, truth and prediction of a few test images."""
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        for images, masks in batches:
            found = segmented(predict, images, masks.shape[-2:])
            mean, std = (statistics[name].to(images.device).view(3, 1, 1) for name in ("mean", "std"))
            pixels = (images * std + mean).clamp(0, 1)
            rows += [
                (image.cpu(), mask.cpu(), one.cpu()) for image, mask, one in zip(pixels, masks, found, strict=True)
            ]
            if len(rows) >= SHOWN:
                break
        path = folder / PICTURE
        draw_masks(rows[:SHOWN], self.classes, path)
        return [path]


def segmented(predict: Predict, images: Tensor, size: Size | torch.Size) -> Tensor:
    """The class of each pixel (N, H, W) of whole images, at another size where that of their masks is another.

    Images are padded to sides that networks take, and what the padding became is cut off before maps are resized.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % SIDE, 0, -height % SIDE))  # with the mean colour
    maps = maps_of(predict(padded), padded)[..., :height, :width]
    return _at(maps.float(), size).argmax(1)


def maps_of(output: Any, images: Tensor) -> Tensor:
    """The map of a model's output, at the size of its images."""
    return _at(output["out"] if isinstance(output, Mapping) else output, images.shape[-2:])


def _at(maps: Tensor, size: Size | torch.Size) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)

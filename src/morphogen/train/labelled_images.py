"""Images with their label maps, and the crop and flip that tie the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.datasets import DatasetFolder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .label_maps import LabelMaps, image_names


class LabelledImages(NamedTuple):
    """One training image, or, as PyTorch's loader collates it, a batch with a first axis N.

    Attributes:
        images: (3, size, size), as the dataset's transform leaves it.
        labels: the class, int64.
        scores: (top_k, rows, columns), float16: the label map of the whole image.
        classes: (top_k, rows, columns), int32: the classes these scores are of.
        boxes: (4,), float32: left, top, right, bottom of the crop as shares of the whole image.
        flipped: bool: the crop was mirrored left to right.
    """

    images: Tensor
    labels: Tensor
    scores: Tensor
    classes: Tensor
    boxes: Tensor
    flipped: Tensor

    def to(self, device: torch.device) -> LabelledImages:
        """All of it on a device."""
        return LabelledImages(*(tensor.to(device, non_blocking=True) for tensor in self))


class LabelledFolder(torch.utils.data.Dataset[LabelledImages]):
    """An image folder with random resized crops and flips, and the label maps to follow them.

    The maps are cropped later, on the device and for a whole batch (`token_labels.token_targets`): there a map is
    dense over the classes, 1,000 for ImageNet, which a loader should not have to carry. So the grid of the
    targets is free to change from step to step, and so is `size` between epochs.
    """

    def __init__(self, dataset: DatasetFolder, maps: LabelMaps, size: int, transform: Callable[[Any], Tensor]):
        """Pair images and maps.

        Args:
            dataset: an image folder; its own transform is not used.
            maps: one for each of its images.
            size: side of the crops in pixels.
            transform: from the cropped, flipped PIL image to a tensor (3, size, size); it should not move pixels
                far, since the label map does not follow (the authors leave RandAugment's small shifts unfollowed).

        Raises:
            ConfigError: the maps are of other classes, or some are missing.
        """
        maps.check(dataset)
        self.dataset, self.maps, self.size, self.transform = dataset, maps, size, transform
        self.names = image_names(dataset)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabelledImages:
        path, label = self.dataset.samples[index]
        image = self.dataset.loader(path)
        width, height = image.size
        crop = v2.RandomResizedCrop(self.size).make_params([image])
        top, left = crop["top"], crop["left"]
        box = torch.tensor([left, top, left + crop["width"], top + crop["height"]]) / torch.tensor([width, height] * 2)
        flipped = torch.rand(()) < 0.5
        image = functional.resized_crop(image, **crop, size=[self.size, self.size], antialias=True)
        if flipped:
            image = functional.horizontal_flip(image)
        scores, classes = self.maps.read(self.names[index])
        return LabelledImages(self.transform(image), torch.tensor(label), scores, classes, box, flipped)

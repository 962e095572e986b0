"""Settings, and the batches that the trainer's data layer makes of them."""

import torch
from torch.utils.data import DataLoader

from morphogen.train.images import RandomCrops
from morphogen.train.recipe import Recipe
from morphogen.train.sources import load_data

EVERYTHING = {
    "warmup_epochs": 1,
    "clip_grad": 1.0,
    "label_smoothing": 0.1,
    "randaugment": 9,
    "erasing": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "repeated_augmentation": 3,
    "ema": 0.9,
}
CPU = torch.device("cpu")


def recipe(**settings):
    usual = {"model": "resnet8(width=8)", "epochs": 2, "batch_size": 64, "images": 256, "lr_schedule": "cosine"}
    return Recipe(**usual | settings)


def streamed(photos, **settings):
    return load_data(
        recipe(**{"data": photos, "image_size": 32, "batch_size": 4, "images": None, "workers": 0} | settings)
    )


def epoch_of(data, *arguments, **settings):
    return [tensor for batch in data.train_batches(*arguments, **settings) for tensor in batch]


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def of_either(source, photos, **settings):
    """Four batches an epoch of images of 32 x 32: of digits, or of photos, the last batch's third image left out."""
    if source == "digits":
        return load_data(recipe(**{"image_size": 32} | settings))
    return streamed(photos, **{"batch_size": 2, "images": 9} | settings)


def crops(images, maps, size, count):
    """A loader of random crops of the images in turn, in batches of 6."""
    dataset = RandomCrops(images.samples, {(size, size): None}, (0,), maps.of(images, range(len(images))))
    items = [(i, i % len(images), (size, size)) for i in range(count)]
    return DataLoader(dataset, 6, sampler=items, num_workers=1)

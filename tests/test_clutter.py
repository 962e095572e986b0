"""The embedded set that a comparison begins with."""

import torch

from morphogen.train import clutter as module
from morphogen.train.clutter import SIDE, clutter
from morphogen.train.config import Recipe
from morphogen.train.sources import load_data


def test_it_is_the_same_every_time_and_of_ten_classes(monkeypatch):
    monkeypatch.setattr(module, "TRAINING", 600)
    monkeypatch.setattr(module, "TESTING", 100)
    torch.manual_seed(1)
    (images, labels), (others, _) = clutter()
    torch.manual_seed(2)
    (again, _), _ = clutter()
    assert torch.equal(images, again) and images.dtype == torch.uint8
    assert images.shape == (600, 3, SIDE, SIDE) and others.shape == (100, 3, SIDE, SIDE)
    assert torch.bincount(labels).min() > 30 and len(labels.unique()) == 10
    assert not torch.equal(images[:100], others)


def test_a_digit_is_in_the_middle_and_stands_out(monkeypatch):
    """Its class can be seen: the inner half of the picture has the contrast, the rim has not."""
    monkeypatch.setattr(module, "TRAINING", 600)
    monkeypatch.setattr(module, "TESTING", 10)
    images = clutter()[0][0].float() / 255
    inner = images[:, :, SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4].std((2, 3)).mean()
    rim = torch.cat([images[:, :, :2].flatten(2), images[:, :, -2:].flatten(2)], 2).std(2).mean()
    assert inner > 1.5 * rim


def test_a_recipe_names_it(monkeypatch):
    monkeypatch.setattr(module, "TRAINING", 64)
    monkeypatch.setattr(module, "TESTING", 32)
    data = load_data(Recipe(data="clutter", batch_size=32, image_size=16, device="cpu"))
    assert data.images == 64 and data.image_size == 16 and data.num_classes == 10

"""Models that are given, or return, more than images and scores: masks, maps, dictionaries."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen
from morphogen.extend import ConfigError

from nets import image
from own_loops import seeded, sgd, step


class Segmentation(nn.Module):
    """Maps of half the image's size, in a dictionary beside a score."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.score = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 5, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = self.body(x).relu()
        return {"out": self.head(x), "score": self.score(x.mean((2, 3)))}


def test_maps_come_back_to_the_size_of_the_masks():
    model = seeded(Segmentation)
    optimizer, images, masks = sgd(model), image(2, 16), torch.randint(5, (2, 8, 8))
    run = morphogen.attach(model, optimizer, morphogen.ProgressiveResizing(stages=2), example=images, epochs=4)
    for epoch in range(4):
        run.begin_epoch(epoch)
        F.cross_entropy(model(images)["out"], masks).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            assert model.eval()(image(2, 32))["out"].shape == (2, 5, 16, 16)
            assert model.train()(images)["score"].shape == (2, 2)


def test_masks_by_hand():
    model = seeded(Segmentation)
    optimizer, images, masks = sgd(model), image(2, 16), torch.randint(5, (2, 16, 16))
    method = morphogen.ProgressiveResizing(stages=2)
    run = morphogen.attach(model, optimizer, method, example=images, epochs=4, hooks=False)
    run.begin_epoch(0)
    small, classes, maps = run.begin_step(images, masks, masks[:, None].float())
    assert small.shape == (2, 3, 8, 8) and classes.shape == (2, 8, 8) and maps.shape == (2, 1, 8, 8)
    assert torch.equal(classes, masks[:, 1::2, 1::2]) and torch.equal(maps[:, 0].long(), classes)


def test_places_that_cannot_come_back_are_refused():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)

        def forward(self, x):
            return self.embed(x).flatten(2).transpose(1, 2)

    model = Tokens()
    settings = {"example": image(2, 16), "epochs": 4}
    with pytest.raises(ConfigError, match=r"Tokens: all that this model returns follows the image's grid.*hooks=False"):
        morphogen.attach(model, sgd(model), morphogen.ProgressiveResizing(stages=2), **settings)
    morphogen.attach(model, sgd(model), morphogen.ProgressiveResizing(stages=2), **settings, hooks=False)


def test_masks_that_a_model_is_given_are_no_images():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)
            self.seen = []

        def forward(self, mask, x):
            self.seen.append((mask.shape[-1], x.shape[-1]))
            return self.head(self.body(x).mean((2, 3)))

    model = Masked()
    optimizer, masks, images = sgd(model), torch.zeros(2, 1, 8, 8), image(2)
    model.seen.clear()
    run = morphogen.attach(model, optimizer, morphogen.NetworkExpansion(stages=2), example=(masks, images), epochs=2)
    run.begin_epoch(0)
    model.seen.clear()
    model(masks, images)
    model(masks.long(), images)
    assert model.seen == [(8, 8), (8, 8)]


def test_images_inside_an_argument_are_resized():
    seen = []

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)

        def forward(self, batch):
            seen.append(tuple(batch["image"].shape[2:]))
            return self.head(self.body(batch["image"]).mean((2, 3)))

    model = Wrapped()
    optimizer = sgd(model)
    example = ({"image": image(4)},)
    method = morphogen.ProgressiveResizing(stages=2)
    run = morphogen.attach(model, optimizer, method, example=example, epochs=4)
    run.begin_epoch(0)
    seen.clear()
    step(model, optimizer, example[0])
    assert seen == [run.network.current.resolution] and seen != [tuple(example[0]["image"].shape[2:])]


def test_maps_have_the_size_that_the_model_gives_them_at_any_size_of_images():
    """A stride of 8 makes 13 of 100 pixels, not 100 / 8 rounded."""
    layers = [nn.Conv2d(*channels, 3, stride=2, padding=1) for channels in ((3, 8), (8, 8), (8, 8))]
    model = nn.Sequential(*layers, nn.Conv2d(8, 3, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    plain = copy.deepcopy(model)
    run = morphogen.attach(model, optimizer, morphogen.ProgressiveResizing(stages=3), example=image(1, 64), epochs=3)
    for epoch in range(3):
        run.begin_epoch(epoch)
        for training in (False, True):
            model.train(training)
            for size in (64, 100, 96, 60, 36):
                x = image(2, size)
                with torch.no_grad():
                    assert model(x).shape == plain(x).shape == (2, 3, -(-size // 8), -(-size // 8))
        model(image(2, 64)).square().sum().backward()
        optimizer.step()
    x = image(2, 100)  # at full size nothing is between the model and its user
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))
    run.end()

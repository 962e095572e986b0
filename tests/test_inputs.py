"""Several inputs: the resolution belongs to those that are images."""

import pytest
import torch
from torch import nn

import morphogen


class Guided(nn.Module):
    """An image, and a guide at a quarter of its size."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(1, 8, 1), nn.Conv2d(8, 5, 1)
        self.seen = []

    def forward(self, guide, image):
        self.seen.append((tuple(guide.shape), tuple(image.shape)))
        return self.head(self.a(image) + self.b(guide)).mean((2, 3))


class Points(nn.Module):
    """Words, points (N, 1, 2, 2) and an image."""

    def __init__(self):
        super().__init__()
        self.e, self.p, self.a, self.head = nn.Embedding(9, 8), nn.Linear(2, 8), nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

    def forward(self, batch):
        x = self.a(batch["image"]).mean((2, 3)) + self.p(batch["points"]).mean((1, 2)) + self.e(batch["ids"]).mean(1)
        return self.head(x)


class Volume(nn.Module):
    """A network of volumes whose result has their size."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 2, 1)
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return self.b(self.a(x).relu())


def test_a_guide_changes_in_proportion():
    net = morphogen.trace(Guided(), (torch.randn(2, 1, 8, 8), torch.randn(2, 3, 32, 32)))
    assert net.dense.resolution == (32, 32)
    morphogen.morph(net, net.subnetwork(width=0.5, resolution=16))
    assert net.model(torch.randn(2, 1, 4, 4), torch.randn(2, 3, 16, 16)).shape == (2, 5)


def test_what_is_no_image_stays_as_it_is():
    batch = {"ids": torch.randint(9, (2, 4)), "points": torch.rand(2, 1, 2, 2), "image": torch.randn(2, 3, 32, 32)}
    net = morphogen.trace(Points(), (batch,))
    morphogen.morph(net, net.subnetwork(resolution=16))
    assert net.current.resolution == (16, 16)


def test_the_user_says_which_are_images():
    example = {"guide": torch.randn(2, 1, 8, 8), "image": torch.randn(2, 3, 32, 32)}
    assert morphogen.trace(Guided(), example, images="guide").dense.resolution == (8, 8)
    with pytest.raises(morphogen.TraceError, match=r"no images there.*'guide', 'image'"):
        morphogen.trace(Guided(), example, images="pixel_values")


@pytest.mark.parametrize("named", [True, False])
def test_hooks_resize_all_images_of_a_batch(named):
    model = Guided()
    guide, image = torch.randn(2, 1, 8, 8), torch.randn(2, 3, 32, 32)
    example = {"guide": guide, "image": image} if named else (guide, image)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = morphogen.ProgressiveResizing(stages=2)
    run = morphogen.attach(model, optimizer, method, example=example, epochs=2)
    run.begin_epoch(0)
    model.seen.clear()
    (model(**example) if named else model(*example)).sum().backward()
    optimizer.step()
    (seen,) = model.seen
    side = run.running.resolution[0]
    assert side < 32 and seen == ((2, 1, side // 4, side // 4), (2, 3, side, side))
    run.end()


def test_volumes_change_height_and_width_and_come_back():
    model, x = Volume(), torch.randn(2, 1, 6, 16, 16)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = morphogen.attach(model, optimizer, morphogen.ProgressiveResizing(stages=2), example=x, epochs=2)
    run.begin_epoch(0)
    model.seen.clear()
    assert model(x).shape == (2, 2, 6, 16, 16)
    side = run.running.resolution[0]
    assert side < 16 and model.seen == [(2, 1, 6, side, side)]
    run.end()

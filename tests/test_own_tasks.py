"""A torchvision detector in one's own loop, whose backbone grows, is pruned, or sees smaller images (docs/tasks.md)."""

from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import morphogen
from morphogen.parts import Prune


def squares(count, side=64):
    """Bright squares on dark ground, and where they are."""
    generator, images, targets = torch.Generator().manual_seed(count), [], []
    for _ in range(count):
        left, top = (int(torch.randint(4, 28, (), generator=generator)) for _ in range(2))
        image = torch.rand(3, side, side, generator=generator) * 0.2
        image[:, top : top + 28, left : left + 28] = 0.9
        images.append(image)
        targets.append({"boxes": torch.tensor([[left, top, left + 28.0, top + 28.0]]), "labels": torch.tensor([1])})
    return images, targets


class Backbone(nn.Sequential):
    """One map of an eighth of the image's size, as torchvision's detectors take it."""

    out_channels = 16

    def __init__(self):
        widths = (3, 16, 24, 32)
        layers = [
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        ]
        super().__init__(*layers, nn.Conv2d(32, 16, 1))

    def forward(self, images):
        return OrderedDict({"0": super().forward(images)})


METHODS = {
    "width": morphogen.NetworkExpansion(width=0.5, stages=2),
    "resolution": morphogen.ProgressiveResizing(ratio=0.5, stages=2),
    "pruning": morphogen.PruneTrain(interval=10, ratio=0.3, threshold=0.12),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_detector_learns_while_its_backbone_changes(method):
    from torchmetrics.detection import MeanAveragePrecision

    anchors = AnchorGenerator(((28,),), ((1.0,),))
    model = RetinaNet(Backbone(), 2, min_size=64, max_size=64, anchor_generator=anchors, detections_per_img=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    (images, targets), epochs = squares(8), 40
    run = morphogen.attach(model.backbone, optimizer, method, example=torch.zeros(2, 3, 64, 64), epochs=epochs)
    for epoch in range(epochs):
        run.begin_epoch(epoch)
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        run.penalised(loss).backward()
        optimizer.step()
    run.end()
    metric = MeanAveragePrecision(iou_thresholds=[0.5])
    with torch.inference_mode():
        metric.update(model.eval()(images), targets)
    assert float(metric.compute()["map_50"]) > 0.9
    stages = [subnetwork for _, subnetwork in run.history]
    if run.part(Prune) is None:
        assert len(stages) == 2 and stages[-1] == run.network.dense != stages[0]
    else:
        assert sum(map(len, stages[-1].channels.values())) < sum(map(len, run.network.dense.channels.values()))

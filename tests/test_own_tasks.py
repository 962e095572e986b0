"""A torchvision detector in one's own loop, whose backbone grows, is pruned, or sees smaller images (docs/tasks.md)."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import morphogen
from morphogen.parts import Grow


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


def detector():
    """RetinaNet on a pyramid of two levels, with one anchor at each place."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5, returned_layers=[2, 3]
    )
    anchors = AnchorGenerator(((16,), (28,), (48,)), ((1.0,),) * 3)
    return RetinaNet(backbone, 2, min_size=64, max_size=64, anchor_generator=anchors, detections_per_img=10)


@pytest.mark.parametrize("method", ["width", "resolution", "pruning"])
def test_a_detector_learns_while_its_backbone_changes(method):
    from torchmetrics.detection import MeanAveragePrecision

    model, epochs = detector(), 12
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    methods = {
        "width": morphogen.NetworkExpansion(width=0.5, stages=2),
        "resolution": morphogen.ProgressiveResizing(ratio=0.5, stages=2),
        "pruning": morphogen.PruneTrain(interval=4, threshold=0.02, ratio=0.3),
    }
    images, targets = squares(8)
    example = torch.zeros(2, 3, 64, 64)
    run = morphogen.attach(model.backbone, optimizer, methods[method], example=example, epochs=epochs)
    for epoch in range(epochs):
        run.begin_epoch(epoch)
        for part in (slice(0, 4), slice(4, 8)):
            loss = sum(model(images[part], targets[part]).values())
            optimizer.zero_grad()
            run.penalised(loss).backward()
            optimizer.step()
    run.end()
    metric = MeanAveragePrecision(iou_thresholds=[0.5])
    with torch.inference_mode():
        metric.update(model.eval()(images), targets)
    assert float(metric.compute()["map_50"]) > 0.5
    if run.part(Grow) is not None:
        assert run.network.current == run.network.dense
        assert model.backbone.body.layer1[0].conv1.out_channels == 64

"""Images of other sizes than the example's, where a method changes the resolution."""

import pytest
import torch
from torch import nn

import morphogen
from morphogen.parts.resize import _side


@pytest.mark.parametrize(
    "given, runs, dense, expected",
    [
        (8, 4, 8, 4),  # the example's own size
        (4, 4, 8, 4),  # resized by the loop
        (16, 4, 8, 8),
        (12, 8, 8, 12),  # full resolution changes nothing
        (96, 44, 64, 64),  # 66, in whole fours as 44 has
        (693, 240, 480, 346),
        (640, 128, 256, 320),
        (1, 4, 8, 1),
    ],
)
def test_a_side_keeps_its_share(given, runs, dense, expected):
    assert _side(given, runs, dense) == expected


def test_images_of_several_sizes_keep_their_sizes_and_their_form():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = morphogen.ProgressiveResizing(ratio=0.5, stages=2)
    run = morphogen.attach(model, optimizer, method, example=torch.zeros(2, 3, 8, 8), epochs=2)
    seen, returned = [], []
    model[0].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[2:])))
    for epoch in range(2):
        run.begin_epoch(epoch)
        for size in ((8, 8), (16, 24)):
            optimizer.zero_grad()
            maps = model(torch.randn(2, 3, *size))
            maps.mean().backward()
            optimizer.step()
            returned.append(tuple(maps.shape[2:]))
        with torch.no_grad():  # on whole images
            returned.append(tuple(model.eval()(torch.randn(1, 3, 20, 24)).shape[2:]))
            model.train()
    assert seen == [(4, 4), (8, 12), (8, 12), (8, 8), (16, 24), (20, 24)]
    assert returned == 2 * [(8, 8), (16, 24), (20, 24)]

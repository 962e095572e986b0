"""GrowOnce: what it makes small by itself, when it grows, and that the function stays."""

import pytest
import torch
from torch import nn

import morphogen

from nets import Residual, Tower, image


class Transformer(nn.Module):
    """Six pre-norm layers of eight channels on sixteen tokens of an image."""

    def __init__(self, depth=6):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        layers = (nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True) for _ in range(depth))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def first_stage(model, method=None, epochs=20):
    network = morphogen.trace(model, torch.randn(2, 3, 8, 8))
    (grow, *_) = (method or morphogen.GrowOnce()).parts()
    grow.plan(network, epochs)
    small, whole = grow.stages
    assert whole.subnetwork == network.dense
    return network, small.subnetwork, whole.start


def test_a_transformer_begins_with_a_quarter_of_its_blocks_and_small_images():
    network, small, start = first_stage(Transformer(), epochs=30)
    assert start == 20  # 0.65 of 30, to even
    assert [len(blocks) for blocks in small.blocks.values()] == [2]  # 1.5 of 6
    assert small.resolution == (4, 4)  # 5 of 8 pixels, which patches of 2 do not divide
    assert small.channels == network.dense.channels


def test_a_transformer_keeps_its_blocks_in_a_short_run():
    network, small, _ = first_stage(Transformer(), epochs=29)
    assert small.blocks == network.dense.blocks and small.resolution == (4, 4)
    _, small, _ = first_stage(Transformer(), morphogen.GrowOnce(resolution=1.0), epochs=29)  # nothing else is small
    assert [len(blocks) for blocks in small.blocks.values()] == [2]
    _, small, _ = first_stage(Transformer(), morphogen.GrowOnce(depth=0.5), epochs=29)
    assert [len(blocks) for blocks in small.blocks.values()] == [3]


def test_a_cnn_begins_with_small_images_alone():
    network, small, _ = first_stage(Residual())
    assert small.resolution == (5, 5) and small.blocks == network.dense.blocks
    network, small, _ = first_stage(Tower())  # four blocks are not deep
    assert small.resolution == (5, 5) and small.blocks == network.dense.blocks


def test_settings_win():
    network, small, start = first_stage(
        Tower(), morphogen.GrowOnce(at=0.3, resolution=1.0, depth=0.5, width=0.5, multiple_of=1)
    )
    assert start == 6 and small.resolution == network.dense.resolution
    assert [len(blocks) for blocks in small.blocks.values()] == [2]
    assert {len(units) for units in small.channels.values()} == {6}


def test_a_short_run_grows_for_its_last_epoch():
    assert first_stage(Residual(), epochs=2)[2] == 1
    with pytest.raises(morphogen.ConfigError, match="GrowOnce: a stage needs at least one epoch"):
        first_stage(Residual(), epochs=1)


def test_a_model_of_which_nothing_is_small_is_refused():
    network = morphogen.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    (grow, *_) = morphogen.GrowOnce().parts()
    with pytest.raises(morphogen.ConfigError, match=r"nothing of this model is small.*GrowOnce\(width=0.5\)"):
        grow.plan(network, 10)


def test_blocks_enter_without_changing_the_function_and_learn():
    torch.manual_seed(0)
    model = Transformer().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = morphogen.GrowOnce(at=0.5, resolution=1.0)
    run = morphogen.attach(model, optimizer, method, example=image(), epochs=2, steps_per_epoch=1)
    images = torch.randn(4, 3, 8, 8)
    run.begin_epoch(0)
    before = model(images)
    model(images).square().sum().backward()
    optimizer.step()
    before = model(images).detach()
    run.begin_epoch(1)
    torch.testing.assert_close(model(images), before)
    entered = [n for n in run.network.current.blocks["layers"] if n not in run.history[0][1].blocks["layers"]]
    assert len(entered) == 4
    optimizer.zero_grad()
    model(images).square().sum().backward()
    for number in entered:
        layer = model.layers[number]
        assert layer.linear2.weight.grad.abs().sum() > 0 and layer.self_attn.out_proj.weight.grad.abs().sum() > 0


def test_shares_that_are_rounded_to_the_whole_are_refused():
    method = morphogen.GrowOnce(width=0.75, resolution=1.0)  # 6 of 8 channels, in multiples of 8
    with pytest.raises(
        morphogen.ConfigError, match=r"nothing of this model is small.*rounded.*multiples of 8.*multiple_of"
    ):
        first_stage(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 2)), method)

"""GrowOnce: what it makes small by itself, when it grows, and that the function stays."""

import copy

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


def stages(model, method=None, epochs=20):
    network = morphogen.trace(model, torch.randn(2, 3, 8, 8))
    (grow, *_) = (method or morphogen.GrowOnce()).parts()
    grow.plan(network, epochs)
    assert grow.stages[-1].subnetwork == network.dense
    return network, grow.stages


def first_stage(model, method=None, epochs=20):
    network, (small, whole) = stages(model, method, epochs)
    return network, small.subnetwork, whole.start


@pytest.mark.parametrize("model", [Residual, Tower])
def test_images_grow_size_by_size_each_with_the_same_share_of_the_compute(model):
    network, found = stages(model(), epochs=100)
    assert [stage.subnetwork.resolution[0] for stage in found] == [3, 4, 5, 6, 7, 8]
    # 1/9, 1/16, 1/25, 1/36, 1/49, 1/64 of their sum 0.277415: 40.1, 22.5, 14.4, 10.0, 7.4, 5.6 epochs
    assert [stage.start for stage in found] == [0, 40, 63, 77, 87, 94]
    assert all(stage.subnetwork.blocks == network.dense.blocks for stage in found)
    assert all(stage.subnetwork.channels == network.dense.channels for stage in found)


def test_sizes_are_those_that_the_model_takes():
    network, found = stages(Transformer(), epochs=100)  # patches of 2: 3, 5 and 7 pixels are taken as 2 or 4, 4 and 6
    sizes = [stage.subnetwork.resolution[0] for stage in found]
    assert sizes == sorted(set(sizes)) and sizes[-1] == 8 and all(size % 2 == 0 for size in sizes)
    assert all(stage.subnetwork.blocks == network.dense.blocks for stage in found)


def test_in_a_short_run_there_are_fewer_sizes():
    assert [(stage.start, stage.subnetwork.resolution[0]) for stage in stages(Residual(), epochs=6)[1]] == [
        (0, 3),
        (2, 4),
        (4, 5),
        (5, 8),
    ]


def test_a_network_that_is_asked_to_be_small_grows_once_while_the_images_grow():
    method = morphogen.GrowOnce(at=0.5, depth=0.5)
    _, found = stages(Transformer(), method, epochs=100)
    alive = {stage.start: len(stage.subnetwork.blocks["layers"]) for stage in found}
    assert alive[50] == 6 and {blocks for start, blocks in alive.items() if start < 50} == {3}
    assert {blocks for start, blocks in alive.items() if start >= 50} == {6}
    (before,) = [stage for stage in found if stage.start == max(start for start in alive if start < 50)]
    (after,) = [stage for stage in found if stage.start == 50]
    assert before.subnetwork.resolution == after.subnetwork.resolution


def test_a_transformer_begins_with_a_quarter_of_its_blocks_where_images_cannot_be_small():
    network, small, start = first_stage(Transformer(), morphogen.GrowOnce(resolution=1.0), epochs=30)
    assert start == 20  # 0.65 of 30, to even
    assert [len(blocks) for blocks in small.blocks.values()] == [2]  # 1.5 of 6
    assert small.channels == network.dense.channels


def test_a_share_of_the_side_is_one_size_until_the_growth():
    network, small, start = first_stage(Residual(), morphogen.GrowOnce(resolution=0.625))
    assert start == 13 and small.resolution == (5, 5) and small.blocks == network.dense.blocks
    network, small, start = first_stage(Transformer(), morphogen.GrowOnce(resolution=0.625, depth=0.25))
    assert start == 13 and small.resolution == (4, 4)  # 5 of 8 pixels, which patches of 2 do not divide
    assert [len(blocks) for blocks in small.blocks.values()] == [2]


def test_a_pretrained_network_keeps_most_of_its_images_or_half_of_its_blocks():
    network, small, start = first_stage(Transformer(), morphogen.GrowOnce(pretrained=True))
    assert start == 13 and small.resolution == (4, 4) and small.blocks == network.dense.blocks
    _, small, start = first_stage(Transformer(), morphogen.GrowOnce(pretrained=True, resolution=1.0))
    assert start == 13 and [len(blocks) for blocks in small.blocks.values()] == [3]


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


def test_a_state_of_other_defaults_is_refused(monkeypatch):
    def attached():
        model = Residual()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        example = torch.randn(2, 3, 8, 8)
        return morphogen.attach(model, optimizer, morphogen.GrowOnce(), example=example, epochs=10, steps_per_epoch=1)

    state = attached().state_dict()
    attached().load_state_dict(state)
    older = copy.deepcopy(state)  # of before states said it
    del older["parts"]["grow"]["schedule"]
    run = attached()
    run.load_state_dict(older)
    assert "schedule" not in run.state_dict()["parts"]["grow"]
    monkeypatch.setattr("morphogen.methods.grow_once.SMALLEST", 0.5)
    with pytest.raises(morphogen.CheckpointError, match=r"another schedule, of other sizes from epoch 0 on.*a default"):
        attached().load_state_dict(state)

"""Resolution: position embeddings, windows and sizes that follow the images."""

import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

import morphogen

from checks import assert_optimizer_holds_model, assert_survivors_equal, snapshot, take_steps
from nets import Tower, image, small


def vit(**settings):
    return small("deit_tiny_patch16_224", depth=2, **settings)[0]


def run_once(model, *size):
    model.train()(torch.randn(2, 3, *size)).sum().backward()


def test_position_embedding_of_a_vit():
    model = vit()
    nn.init.normal_(model.pos_embed)
    dense = model.pos_embed.detach().clone()
    net = morphogen.trace(model, image(size=32))
    receipt = morphogen.morph(net, net.subnetwork(resolution=16))
    assert dense.shape == (1, 1 + 8 * 8, 12) and model.pos_embed.shape == (1, 1 + 4 * 4, 12)
    assert torch.equal(model.pos_embed[:, :1], dense[:, :1])  # the class token
    grid = dense[:, 1:].reshape(1, 8, 8, 12).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, (4, 4), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(model.pos_embed[:, 1:], expected)
    assert list(receipt.changes) == ["pos_embed"] and receipt.carried == 0 and receipt.new == 17 * 12
    assert model.pos_embed is receipt.changes["pos_embed"].tensor
    run_once(model, 16, 16)
    morphogen.morph(net, net.dense)
    assert model.pos_embed.shape == dense.shape and torch.equal(model.pos_embed[:, :1], dense[:, :1])
    run_once(model, 32, 32)
    fresh = vit()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(image(size=32) * 0 + 1), model.eval()(image(size=32) * 0 + 1))


def test_a_constant_embedding_stays_constant():
    model = vit()
    nn.init.constant_(model.pos_embed, 0.7)
    net = morphogen.trace(model, image(size=32))
    for size, tokens in ((8, 4), (20, 25), (28, 49), (32, 64)):
        morphogen.morph(net, net.subnetwork(resolution=size))
        torch.testing.assert_close(model.pos_embed.detach(), torch.full((1, 1 + tokens, 12), 0.7))
        run_once(model, size, size)


def distilled():
    kwargs = {"img_size": 32, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 10}
    return timm.create_model("deit_tiny_distilled_patch16_224", **kwargs)


@pytest.mark.parametrize(
    "make, prefix",
    [
        (distilled, 2),
        (lambda: vit(reg_tokens=4), 5),
        (lambda: vit(reg_tokens=4, no_embed_class=True), 0),
        (lambda: vit(class_token=False, global_pool="avg"), 0),
    ],
    ids=["distilled", "registers", "registers without positions", "no class token"],
)
def test_tokens_before_the_grid_are_carried(make, prefix):
    model = make()
    nn.init.normal_(model.pos_embed)
    dense = model.pos_embed.detach().clone()
    net = morphogen.trace(model, image(size=32))
    assert dense.shape[1] == prefix + 64
    for size, tokens in ((16, 16), (24, 36), (32, 64)):
        morphogen.morph(net, net.subnetwork(resolution=size))
        assert model.pos_embed.shape == (1, prefix + tokens, 12)
        assert torch.equal(model.pos_embed[:, :prefix], dense[:, :prefix])
        run_once(model, size, size)


def test_images_that_are_not_square():
    model = vit(img_size=(32, 64))
    columns = torch.arange(16.0).expand(8, 16).reshape(1, 128, 1)  # the embedding is the column's number
    with torch.no_grad():
        model.pos_embed[:, 1:] = columns
    net = morphogen.trace(model, torch.randn(2, 3, 32, 64))
    half = net.subnetwork(resolution=0.5)
    assert half.resolution == (16, 32)
    morphogen.morph(net, half)
    grid = model.pos_embed[0, 1:, 0].detach().view(4, 8)
    assert grid[:, 2:-2].tolist() == [pytest.approx([4.5, 6.5, 8.5, 10.5], abs=1e-4)] * 4  # means of two
    run_once(model, 16, 32)
    morphogen.morph(net, net.dense)
    run_once(model, 32, 64)


def test_images_that_are_not_square_at_any_share():
    """A sub-network that `subnetwork` hands out can be morphed to; 0.6 of 32 x 48 is 19 x 29 pixels."""
    model = vit(img_size=(32, 48))
    net = morphogen.trace(model, torch.randn(2, 3, 32, 48))
    target = net.subnetwork(resolution=0.6)
    morphogen.morph(net, target)
    run_once(model, *target.resolution)


def test_another_aspect_ratio_is_resampled_rightly_or_refused():
    model = vit(img_size=(32, 48))
    with torch.no_grad():
        model.pos_embed[:, 1:] = torch.arange(8.0).view(8, 1).expand(8, 12).reshape(1, 96, 1)  # the row's number
    net = morphogen.trace(model, torch.randn(2, 3, 32, 48))
    try:
        morphogen.morph(net, net.subnetwork(resolution=(32, 32)))
    except morphogen.MorphogenError:
        return
    rows = model.pos_embed[0, 1:, 0].detach().view(8, 8)
    torch.testing.assert_close(rows, torch.arange(8.0).view(8, 1).expand(8, 8))


def tiny_volo():
    model, side = small("volo_d1", layers=(1, 1, 1, 1))
    nn.init.constant_(model.pos_embed, 0.3)
    return model, morphogen.trace(model, image(size=side))


@pytest.mark.nightly
def test_volo_keeps_height_and_width_apart():
    model, net = tiny_volo()
    assert model.pos_embed.shape == (1, 4, 4, 24)
    for size, shape in (((32, 32), (1, 2, 2, 24)), ((48, 48), (1, 3, 3, 24)), ((64, 64), (1, 4, 4, 24))):
        morphogen.morph(net, net.subnetwork(resolution=size))
        torch.testing.assert_close(model.pos_embed.detach(), torch.full(shape, 0.3))
        run_once(model, *size)


def test_one_side_alone_may_change():
    model, net = tiny_volo()
    morphogen.morph(net, net.subnetwork(resolution=(32, 64)))
    torch.testing.assert_close(model.pos_embed.detach(), torch.full((1, 2, 4, 24), 0.3))
    run_once(model, 32, 64)


def windows(model):
    """Everything of a Swin that is a table, a mask or an index, and the sizes that go with them."""
    plain = {
        (path, name): getattr(module, name)
        for path, module in model.named_modules()
        for name in ("window_size", "shift_size", "window_area", "input_resolution", "grid_size", "img_size")
        if hasattr(module, name)
    }
    return {name: buffer.clone() for name, buffer in model.named_buffers()}, plain


def swin(**settings):
    return small("swin_tiny_patch4_window7_224", depths=(2, 2), num_heads=(1, 2), **settings)[0]


def test_windows_of_swin_come_back():
    model = swin()
    buffers, plain = windows(model)
    table = model.layers[0].blocks[0].attn.relative_position_bias_table
    nn.init.constant_(table, 0.2)
    net = morphogen.trace(model, image(size=64))
    x = image(size=64)
    expected = model.eval()(x).detach()
    morphogen.morph(net, net.subnetwork(resolution=32))
    # timm's windows shrink with the grid: 4 of 16 become 2 of 8
    assert model.layers[0].blocks[0].window_size == (2, 2) and table.shape == (9, 1)
    torch.testing.assert_close(table.detach(), torch.full_like(table, 0.2))
    assert model.layers[0].blocks[0].attn.relative_position_index.shape == (4, 4)
    run_once(model, 32, 32)
    morphogen.morph(net, net.dense)
    again, attributes = windows(model)
    assert attributes == plain and again.keys() == buffers.keys()
    assert all(torch.equal(value, buffers[name]) for name, value in again.items())
    assert table is model.layers[0].blocks[0].attn.relative_position_bias_table and table.shape == (49, 1)
    assert model.eval()(x).shape == expected.shape
    swin().load_state_dict(model.state_dict())


@pytest.mark.nightly
def test_windows_of_another_size_come_back():
    model = swin(window_size=8)
    buffers, plain = windows(model)
    net = morphogen.trace(model, image(size=64))
    morphogen.morph(net, net.subnetwork(resolution=32))
    run_once(model, 32, 32)
    morphogen.morph(net, net.dense)
    again, attributes = windows(model)
    assert attributes == plain and again.keys() == buffers.keys()
    assert all(torch.equal(value, buffers[name]) for name, value in again.items())
    run_once(model, 64, 64)


@pytest.mark.nightly
def test_a_swin_grows_in_depth_and_resolution_at_once():
    """At the small size a stage is one window, without a mask; at the large one the new blocks need theirs."""
    model, side = small("swin_tiny_patch4_window7_224", img_size=32, depths=(2, 4), num_heads=(1, 2), window_size=2)
    net = morphogen.trace(model, image(size=side))
    morphogen.morph(net, net.subnetwork(depth=0.5, resolution=16))
    assert model.layers[1].blocks[1].attn_mask is None
    run_once(model, 16, 16)
    morphogen.morph(net, net.dense)
    run_once(model, side, side)


def test_image_size_of_torchvision():
    model = torchvision.models.VisionTransformer(32, 4, 2, 2, 12, 24, num_classes=10)
    net = morphogen.trace(model, image(size=32))
    morphogen.morph(net, net.subnetwork(resolution=16))
    assert model.image_size == 16 and model.encoder.pos_embedding.shape == (1, 17, 12)
    run_once(model, 16, 16)
    morphogen.morph(net, net.dense)
    assert model.image_size == 32 and model.encoder.pos_embedding.shape == (1, 65, 12)
    run_once(model, 32, 32)


def test_moments_are_resampled_and_second_ones_stay_positive():
    model = vit()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, amsgrad=True)
    net = morphogen.trace(model, image(size=32))
    take_steps(model, optimizer, image(size=32))
    spikes = optimizer.state[model.pos_embed]["exp_avg_sq"]
    spikes.copy_((torch.rand_like(spikes) > 0.9).float())  # bicubic weights would go below zero beside a spike
    for size in (16, 28, 32):
        old, before = net.current, snapshot(model, optimizer)
        morphogen.morph(net, net.subnetwork(resolution=size), optimizer=optimizer)
        assert_survivors_equal(net, before, old, net.current, snapshot(model, optimizer))
        assert_optimizer_holds_model(model, optimizer)
        state = optimizer.state[model.pos_embed]
        assert (state["exp_avg_sq"] >= 0).all() and (state["max_exp_avg_sq"] >= 0).all()
        assert state["exp_avg"].shape == model.pos_embed.shape and state["exp_avg"].abs().max() > 0
        assert torch.equal(state["exp_avg"][:, :1], before["pos_embed/exp_avg"][:, :1])
        assert model.pos_embed.grad is None  # a gradient belongs to entries; interpolated ones are others
    take_steps(model, optimizer, image(size=32))


class Patches(nn.Module):
    """Cuts an image into patches of 4 by a view, which no other side allows."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3 * 16, 8)
        self.position = nn.Parameter(torch.zeros(1, 64, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        h, w = x.shape[2:]
        x = x.view(-1, 3, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return self.head((self.embed(x) + self.position).mean(1))


@pytest.mark.parametrize("asked, taken", [(31, 32), (30, 28), (29, 28), (27, 28), (26, 24), (5, 4)])
def test_a_resolution_is_rounded_with_a_warning(asked, taken):
    """To the nearest one that the patches divide; of two that are as near, the smaller."""
    net = morphogen.trace(Patches(), image(size=32))
    with pytest.warns(UserWarning, match=rf"resolution \({asked}, {asked}\) is not possible.*\({taken}, {taken}\)"):
        target = net.subnetwork(resolution=asked)
    assert target.resolution == (taken, taken)
    morphogen.morph(net, target)
    run_once(net.model, taken, taken)


def test_a_resolution_is_rounded_to_whole_patches_of_timm():
    net = morphogen.trace(vit(), image(size=32))
    with pytest.warns(UserWarning, match="is not possible"):
        assert net.subnetwork(resolution=30).resolution == (28, 28)


@pytest.mark.parametrize("make", [vit, Patches])
def test_a_resolution_below_one_patch_is_refused(make):
    net = morphogen.trace(make(), image(size=32))
    for size in (2, 3):
        with pytest.raises(morphogen.SubNetworkError, match=rf"{size} pixels: the resolution is below the least"):
            net.subnetwork(resolution=size)
    assert net.subnetwork(resolution=4).resolution == (4, 4)


def test_a_cnn_takes_any_resolution():
    model = Tower()
    net = morphogen.trace(model, image(size=32))
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for asked, taken in ((31, (31, 31)), ((17, 5), (17, 5)), (0.3, (10, 10)), (1, (1, 1)), (40, (40, 40))):
            target = net.subnetwork(resolution=asked)
            assert target.resolution == taken
            receipt = morphogen.morph(net, target)
            assert not receipt.changes and not receipt.entered
    after = snapshot(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_images_that_a_view_would_merge_are_of_one_size():
    """Eight images of 4 x 4 are two rows of 64: a model of PyTorch's examples runs on them, and mixes them up."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(64, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.out(torch.relu(self.hidden(x.view(-1, 64))))

    net = morphogen.trace(Flat(), torch.randn(8, 1, 8, 8))
    with pytest.raises(morphogen.SubNetworkError):
        net.subnetwork(resolution=4)
    with pytest.raises(morphogen.ConfigError, match="images of one size alone"):
        morphogen.GrowOnce().schedule(net, 4)


class Positions(nn.Module):
    """16 patches, and a table of a position for each and one for a class token, read as other people's code does."""

    def __init__(self, read):
        super().__init__()
        self.patches, self.table = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 17, 8))
        self.out, self.read = nn.Linear(8, 4), read

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.out(self.read(x, self.table).mean(1))


def as_mae(x, table):
    return torch.cat([x + table[:, 1:, :], table[:, :1, :].expand(len(x), -1, -1)], 1)


def as_vit_pytorch(x, table):
    x = torch.cat([x.new_zeros(len(x), 1, 8), x], 1)
    x += table[:, : x.shape[1]]
    return x


@pytest.mark.parametrize("read", [as_mae, as_vit_pytorch])
def test_a_table_that_is_read_in_parts_follows_the_grid(read):
    """vit-pytorch's ran as it was, with the positions of the first rows of a wider grid."""
    model = Positions(read)
    net, whole = morphogen.trace(model, image(size=16)), model.table.detach().clone()
    morphogen.morph(net, net.subnetwork(resolution=8))
    assert model.table.shape == (1, 5, 8) and torch.equal(model.table[:, :1], whole[:, :1])
    grid = whole[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, (2, 2), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(model.table[:, 1:], expected)
    run_once(model, 8, 8)
    morphogen.morph(net, net.dense)
    assert model.table.shape == whole.shape
    run_once(model, 16, 16)


def test_a_frozen_table_comes_back_as_it_was():
    """MAE's sines and cosines: interpolated down and up again they would be blurred for good."""
    model = Positions(as_mae)
    model.table.requires_grad_(False)
    ema = torch.optim.swa_utils.AveragedModel(model)
    net, whole = morphogen.trace(model, image(size=16)), model.table.clone()
    for size in (8, 12, 16):  # each from the whole one
        morphogen.morph(net, net.subnetwork(resolution=size), ema=ema)
        side = size // 4
        grid = whole[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        expected = nn.functional.interpolate(grid, (side, side), mode="bicubic", antialias=True).flatten(2).mT
        torch.testing.assert_close(model.table[:, 1:], expected)
        assert torch.equal(ema.module.table, model.table)
    assert torch.equal(model.table, whole)


class Sines(nn.Module):
    """As vit-pytorch's SimpleViT: a plain tensor, moved to where the images are."""

    def __init__(self):
        super().__init__()
        self.patches, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        self.sines = torch.randn(16, 8)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.out((x + self.sines.to(x.device, dtype=x.dtype)).mean(1))


def test_a_table_that_is_a_plain_tensor_follows_the_grid():
    model = Sines()
    net, whole = morphogen.trace(model, image(size=16)), model.sines.clone()
    morphogen.morph(net, net.subnetwork(resolution=8))
    assert model.sines.shape == (4, 8)
    run_once(model, 8, 8)
    morphogen.morph(net, net.dense)
    assert torch.equal(model.sines, whole)


def test_one_patch_is_not_spread_over_a_table_of_many():
    """A single token plus 16 positions is 16 tokens to PyTorch."""
    net = morphogen.trace(Positions(lambda x, table: x + torch.narrow(table, 1, 1, 16)), image(size=16))
    for size in (4, 8, 12):
        with pytest.raises(morphogen.SubNetworkError):
            net.subnetwork(resolution=size)


class Masked(nn.Module):
    """Windows of 2 x 2 tokens; a mask is added at the size that the model was made for in every other block alone, and
    at others in all (SwinIR)."""

    def __init__(self):
        super().__init__()
        self.patches, self.out, self.made_for = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5), (8, 8)
        self.register_buffer("mask", self.mask_of(8, 8))
        self.bias = nn.Parameter(torch.randn(1, 4, 4))

    def mask_of(self, h, w):
        return torch.arange(h * w // 4.0).view(-1, 1, 1).expand(-1, 4, 4)

    def forward(self, x):
        x = self.patches(x)
        h, w = x.shape[2:]
        x = x.unflatten(2, (h // 2, 2)).unflatten(4, (w // 2, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
        for shifted in (False, True):
            scores = x @ x.transpose(2, 3) + self.bias
            if (h, w) != self.made_for:
                scores = scores + self.mask_of(h, w)
            elif shifted:
                scores = scores + self.mask
            x = scores.softmax(-1) @ x + 1
        return self.out(x.mean((1, 2)))


def test_a_model_may_add_more_often_at_other_sizes():
    model = Masked()
    net = morphogen.trace(model, image(size=32))
    assert net.subnetwork(resolution=16).resolution == (16, 16)
    assert net.subnetwork(resolution=24).resolution == (24, 24)


@pytest.mark.parametrize("bad", [0, -4, 0.0, 1.5, (32,), (32, 0), (32, 16.0)], ids=str)
def test_resolutions_that_are_none(bad):
    net = morphogen.trace(Tower(), image(size=32))
    with pytest.raises(morphogen.SubNetworkError, match="resolution"):
        net.subnetwork(resolution=bad)


def test_no_images_no_resolution():
    net = morphogen.trace(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(2, 4))
    with pytest.raises(morphogen.SubNetworkError, match="not a batch of images"):
        net.subnetwork(resolution=0.5)


CURRICULA = [
    # Epochs of a part: its tenths of the compute by (224 / r)^2. Of 200: 10.889 : 7.84 : 4 of 22.729 begin at 95.8 and
    # 164.8; with DeiT's step of 192 pixels 10.889 : 7.84 : 2.722 : 2 of 23.451 at 92.9, 159.7 and 182.9.
    (False, 224, 1, [(0, 96), (96, 160), (165, 224)]),
    (True, 224, 1, [(0, 96), (93, 160), (160, 192), (183, 224)]),
    # The same shares of 32 pixels, 13.7 and 22.9, are rounded; lengths go by what is taken:
    # 2 / 196 : 4 / 529 : 4 / 1024, of 200 begin at 94.2 and 163.9.
    (False, 32, 1, [(0, 14), (94, 23), (164, 32)]),
    # To whole patches of 4, 2 / 144 : 4 / 576 : 4 / 1024, at 112.2 and 168.4.
    (False, 32, 4, [(0, 12), (112, 24), (168, 32)]),
]


@pytest.mark.parametrize("deit, side, patch, expected", CURRICULA)
@pytest.mark.filterwarnings("ignore:resolution")
def test_efficient_train_gives_each_size_its_share_of_the_compute(deit, side, patch, expected):
    layers = [nn.Conv2d(3, 4, patch, patch), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]
    model = vit(img_size=side, patch_size=patch) if patch > 1 else nn.Sequential(*layers)
    net = morphogen.trace(model, image(size=side))
    stages = morphogen.EfficientTrain(deit=deit).schedule(net, 200)
    assert [(stage.start, stage.subnetwork.resolution) for stage in stages] == [(at, (r, r)) for at, r in expected]
    assert all(stage.subnetwork.channels == net.dense.channels for stage in stages)


def test_efficient_train_raises_randaugment_by_tenths_of_the_compute():
    """In ten epochs; the middle of epoch 4, 0.45, is 2 x 0.45 / 0.479 = 1.88 tenths in, and so on."""
    method = morphogen.EfficientTrain()
    assert [round(9 * method.regularisation(epoch, 10).randaugment, 9) for epoch in range(10)] == [
        *(0, 0, 1, 1, 1, 2, 3, 5, 6, 8)
    ]
    assert method.regularisation(499, 500).randaugment == 1
    deit = morphogen.EfficientTrain(deit=True)  # 2 + 4 x (0.75 - 0.4643) / 0.3343 = 5.42 tenths
    assert deit.regularisation(7, 10).randaugment == 5 / 9

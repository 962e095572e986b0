"""The papers' recipe: images at the size that trains, augmentation, schedule, averages, and the files in recipes/."""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torchvision.transforms import RandomResizedCrop

from morphogen.cli import _parse
from morphogen.errors import ConfigError
from morphogen.methods import METHODS, Dense
from morphogen.methods.method import Method
from morphogen.resize import RESIZINGS, low_frequency, resized
from morphogen.schedule.cosine import cosine_share
from morphogen.schedule.stages import Regularisation, Stage
from morphogen.train.augment import image_order, rand_augment, seeded
from morphogen.train.config import Recipe
from morphogen.train.data import Data, load_data, loader_throughput
from morphogen.train.images import RandomCrops, read_random_crop
from morphogen.train.loop import Run, build_optimizer
from morphogen.train.models import build_model

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
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
    return Recipe(**{"model": "resnet8(width=8)", "epochs": 2, "batch_size": 64, "images": 256} | settings)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEGs of several sizes and shapes, too large for memory."""
    root, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            for i in range(6):
                coarse = noise.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((160 + 8 * i, 120), Image.Resampling.BICUBIC).save(
                    root / part / label / f"{i}.jpg", quality=95
                )
    return str(root)


def streamed(photos, **settings):
    return load_data(
        recipe(**{"data": photos, "image_size": 32, "batch_size": 4, "images": None, "workers": 0} | settings)
    )


def epoch_of(data, *arguments, **settings):
    return [tensor for batch in data.train_batches(*arguments, **settings) for tensor in batch]


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- images at the sub-network's size ---------------------------------------------------------------------


def test_a_spectrum_cropped_to_its_own_size_is_the_image():
    for size in ((16, 16), (15, 12)):
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(low_frequency(images, size), images)


@pytest.mark.parametrize("size", [(16, 16), (9, 12), (7, 5)])
def test_low_frequencies_keep_brightness(size):
    torch.testing.assert_close(low_frequency(torch.full((2, 3, 20, 17), 0.7), size), torch.full((2, 3, *size), 0.7))
    images = torch.rand(2, 3, 20, 17)
    torch.testing.assert_close(low_frequency(images, size).mean((2, 3)), images.mean((2, 3)))


@pytest.mark.parametrize(("down", "across"), [(0, 0), (3, 0), (0, 2), (3, 2)])
def test_a_slow_wave_is_kept_and_a_fast_one_goes(down, across):
    def wave(height, width, down, across):
        rows, columns = torch.arange(height) / height, torch.arange(width) / width
        return torch.cos(2 * math.pi * (down * rows[:, None] + across * columns[None, :]) + 0.3)[None, None]

    small = low_frequency(wave(32, 24, down, across), (12, 11))
    torch.testing.assert_close(small, wave(12, 11, down, across), atol=1e-5, rtol=0)
    assert low_frequency(wave(32, 24, 7, 0), (12, 11)).abs().max() < 1e-5


def test_an_image_of_the_size_is_left_alone_and_no_spectrum_grows():
    images = torch.randn(1, 3, 16, 16)
    assert resized(images, (16, 16), "low-frequency") is images
    with pytest.raises(ConfigError, match="at most 16 x 16"):
        resized(images, (16, 20), "low-frequency")


@pytest.mark.parametrize("resizing", RESIZINGS)
@pytest.mark.parametrize("size", [None, (16, 16), (8, 8), (10, 12)])
def test_digits_have_the_size_asked_for(size, resizing):
    data = load_data(recipe(**EVERYTHING))
    expected = size or (16, 16)
    batches = list(data.train_batches(0, 0, size, resizing))
    assert len(batches) == data.steps == 4
    for images, labels in batches:
        assert images.shape == (64, 3, *expected) and images.dtype == torch.float32
        assert labels.shape == (64, 10)
    assert all(images.shape[2:] == expected for images, _ in data.test_batches(size))


@pytest.mark.parametrize("resizing", RESIZINGS)
@pytest.mark.parametrize("size", [None, (16, 16), (20, 28)])
def test_photos_have_the_size_asked_for(photos, size, resizing):
    data = streamed(photos)
    expected = size or (32, 32)
    assert [images.shape for images, _ in data.train_batches(0, 0, size, resizing)] == [(4, 3, *expected)] * 3
    assert [images.shape for images, _ in data.test_batches(size)] == [(4, 3, *expected)] * 3


def test_photos_are_decoded_at_the_size_that_trains(photos, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "morphogen.train.images.read_random_crop",
        lambda path, size: sizes.append(size) or (Image.new("RGB", size[::-1]), (0.0, 0.0, 1.0, 1.0)),
    )
    data = streamed(photos)
    for resizing, decoded in (("bilinear", (16, 24)), ("low-frequency", (32, 32))):
        sizes.clear()
        epoch_of(data, 0, 0, (16, 24), resizing)
        assert set(sizes) == {decoded}


@pytest.mark.parametrize(
    ("crop", "size", "scale"),
    [  # crop is (top, left, height, width) of 480 x 640
        ((0, 0, 480, 640), (60, 80), 8),
        ((0, 0, 480, 640), (61, 80), 4),
        ((100, 200, 200, 200), (50, 50), 4),
        ((100, 201, 200, 199), (50, 50), 2),  # 199 / 4 is less than 50
        ((8, 8, 300, 150), (96, 96), 1),
        ((0, 0, 40, 40), (96, 96), 1),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_jpeg_is_decoded_no_finer_than_its_crop_needs(tmp_path, monkeypatch, crop, size, scale, suffix):
    path = str(tmp_path / f"image.{suffix}")
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    whole = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
    whole.save(path, **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))
    seen = []
    resize = Image.Image.resize
    monkeypatch.setattr(RandomResizedCrop, "get_params", lambda *_: crop)
    monkeypatch.setattr(Image.Image, "resize", lambda image, *rest: seen.append(image.size) or resize(image, *rest))
    image, box = read_random_crop(path, size)
    scale = scale if suffix == "jpg" else 1
    assert seen == [(640 // scale, 480 // scale)] and image.size == size[::-1]
    top, left, height, width = crop
    assert box == (left / 640, top / 480, (left + width) / 640, (top + height) / 480)
    plain = resize(whole.crop((left, top, left + width, top + height)), size[::-1], Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(image, int) - np.asarray(plain, int)).mean() < 3


# --- another size in each step ------------------------------------------------------------------------------

EACH_STEP = [(16, 24), (32, 32), (16, 16), (16, 24)]


def of_either(source, photos, **settings):
    """Four batches an epoch of images of 32 x 32: of digits, or of photos, the last batch's third image left out."""
    if source == "digits":
        return load_data(recipe(**{"image_size": 32} | settings))
    return streamed(photos, **{"batch_size": 2, "images": 9} | settings)


@pytest.mark.parametrize(("source", "workers"), [("digits", 0), ("photos", 0), ("photos", 2)])
@pytest.mark.parametrize("resizing", RESIZINGS)
@pytest.mark.parametrize("strength", [Regularisation(), Regularisation(0.5, 0.5)])
def test_a_batch_is_that_of_an_epoch_at_its_size(source, workers, resizing, strength, photos):
    data = of_either(source, photos, workers=workers, **EVERYTHING)
    whole = {size: list(data.train_batches(3, 1, size, resizing, strength)) for size in set(EACH_STEP)}
    mixed = list(data.train_batches(3, 1, EACH_STEP, resizing, strength))
    assert len(mixed) == data.steps == 4
    for step, (batch, size) in enumerate(zip(mixed, EACH_STEP, strict=True)):
        assert batch[0].shape[2:] == size and same(batch, whole[size][step])


def test_each_photo_is_decoded_at_the_size_of_its_step(photos, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "morphogen.train.images.read_random_crop",
        lambda path, size: sizes.append(size) or (Image.new("RGB", size[::-1]), (0.0, 0.0, 1.0, 1.0)),
    )
    data = of_either("photos", photos, repeated_augmentation=3)
    for resizing, decoded in (("bilinear", EACH_STEP), ("low-frequency", [(32, 32)] * 4)):
        sizes.clear()
        epoch_of(data, 0, 0, EACH_STEP, resizing)
        assert sizes == [size for size in decoded for _ in range(2)]


@pytest.mark.parametrize(
    ("source", "resizing", "decoded"),
    [
        ("digits", "bilinear", {(32, 32)}),
        ("photos", "bilinear", set(EACH_STEP)),
        ("photos", "low-frequency", {(32, 32)}),
    ],
)
def test_randaugment_shifts_by_the_size_that_is_decoded(source, resizing, decoded, photos, monkeypatch):
    made = {}

    def remembered(magnitude, size, mean):
        made[size] = rand_augment(magnitude, size, mean)
        return made[size]

    monkeypatch.setattr("morphogen.train.data.rand_augment", remembered)
    next(of_either(source, photos, randaugment=9).train_batches(0, 0, EACH_STEP, resizing))
    assert made.keys() == decoded
    for size, augment in made.items():
        assert augment.ops[0].hparams["translate_const"] == int(min(size) * 0.45)


@pytest.mark.parametrize("sizes", [[], [(16, 16)] * 3, [(16, 16)] * 5])
def test_sizes_that_are_not_one_a_step_are_refused_at_once(sizes):
    with pytest.raises(ConfigError, match=rf"not one size for each step; expected 4, found {len(sizes)}"):
        load_data(recipe()).train_batches(0, 0, sizes)


# --- a fixed subset -----------------------------------------------------------------------------------------


def random_states():
    return [torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]


@pytest.mark.parametrize(("source", "workers"), [("digits", 0), ("photos", 0), ("photos", 2)])
def test_a_subset_is_the_same_every_time_and_leaves_no_trace(source, workers, photos):
    data = of_either(source, photos, workers=workers, **EVERYTHING)
    count = 2 * data.recipe.batch_size + 1
    subset, before, batches = data.subset(count, 5), random_states(), []
    for batch in subset:
        assert random_states() == before
        batches += batch
    assert random_states() == before and subset.steps == 2
    assert [images.shape for images in batches[::2]] == [(data.recipe.batch_size, 3, 32, 32)] * 2
    torch.manual_seed(5)
    epoch_of(data, 5, 0)
    for other in (subset, data.subset(count, 5), of_either(source, photos, **EVERYTHING).subset(count, 5)):
        assert same(batches, [tensor for batch in other for tensor in batch])
    assert not same(batches, [tensor for batch in data.subset(count, 6) for tensor in batch])


@pytest.mark.parametrize("source", ["digits", "photos"])
def test_two_walks_through_a_subset_do_not_disturb_each_other(source, photos):
    data = of_either(source, photos, **EVERYTHING)
    subset = data.subset(2 * data.recipe.batch_size, 0)
    assert all(same(one, other) for one, other in zip(subset, subset, strict=True))


def test_a_subset_has_each_image_once(photos, monkeypatch):
    paths = []
    monkeypatch.setattr(
        "morphogen.train.images.read_random_crop",
        lambda path, size: paths.append(path) or (Image.new("RGB", size[::-1]), (0.0, 0.0, 1.0, 1.0)),
    )
    data = streamed(photos, repeated_augmentation=3)
    chosen = []
    for seed in (0, 0, 1):
        paths.clear()
        assert len(list(data.subset(9, seed))) == 2
        chosen.append(paths.copy())
        assert len(set(paths)) == 8
    assert chosen[0] == chosen[1] and set(chosen[0]) != set(chosen[2])


def test_a_subset_is_augmented_as_the_recipe_and_the_strength_say(photos):
    for source in ("digits", "photos"):
        on, off = (of_either(source, photos, **settings) for settings in ({"erasing": 1.0}, {}))
        count = on.recipe.batch_size
        erased, plain, weak = (
            next(iter(subset))[0]
            for subset in (on.subset(count, 0), off.subset(count, 0), on.subset(count, 0, Regularisation(erasing=0.0)))
        )
        assert torch.equal(plain, weak) and (erased != plain).flatten(1).any(1).all()


def test_a_subset_that_cannot_be_is_refused(photos):
    data = streamed(photos)
    with pytest.raises(ConfigError, match="a subset larger than the data; expected at most 12, found 13"):
        data.subset(13, 0)
    for count in (3, 0, -1):
        with pytest.raises(ConfigError, match=f"a subset smaller than one batch; expected at least 4, found {count}"):
            data.subset(count, 0)
    assert len(list(data.subset(12, 0))) == 3


# --- what a seed and an epoch decide ----------------------------------------------------------------------


@pytest.mark.parametrize("source", ["digits", "photos"])
def test_a_seed_and_an_epoch_decide_every_batch(source, photos):
    data = load_data(recipe(**EVERYTHING)) if source == "digits" else streamed(photos, **EVERYTHING)
    first = epoch_of(data, 1, 2)
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    again = epoch_of(data, 1, 2)
    assert same(first, again)
    assert torch.equal(state[0], torch.random.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()
    assert not same(first, epoch_of(data, 1, 3)) and not same(first, epoch_of(data, 2, 2))


def test_workers_do_not_change_the_batches(photos):
    alone, shared = (epoch_of(streamed(photos, workers=workers, **EVERYTHING), 0, 0) for workers in (0, 2))
    assert same(alone, shared)


def test_seeds_hold_inside_and_leave_no_trace_outside():
    with seeded(1, 2, device=CPU):
        inside = torch.rand(3), np.random.rand(3)
        with seeded(3, device=CPU):
            other = torch.rand(3)
        after = torch.rand(3)
    with seeded(1, 2, device=CPU):
        assert torch.equal(torch.rand(3), inside[0]) and (np.random.rand(3) == inside[1]).all()
        assert torch.equal(torch.rand(3), after)
    assert not torch.equal(other, inside[0])


def test_an_image_that_comes_twice_is_cropped_anew(photos):
    crops, size = RandomCrops(streamed(photos).train, {(16, 16): None}, (0, 0)), (16, 16)
    assert torch.equal(crops[0, 3, size][0], crops[0, 3, size][0])
    assert not torch.equal(crops[0, 3, size][0], crops[1, 3, size][0])
    assert crops[0, 3, size][1] == crops[1, 3, size][1] == 0 and crops[0, 8, size][1] == 1


def test_repeated_augmentation_has_timms_order():
    sampler = RepeatAugSampler(range(100), num_replicas=1, rank=0, num_repeats=3, selected_round=0)
    sampler.set_epoch(7)
    assert image_order(100, 3, torch.Generator().manual_seed(7)).tolist() == list(sampler)
    for off in (0, 1):
        assert sorted(image_order(100, off, torch.Generator()).tolist()) == list(range(100))


# --- strength ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["digits", "photos"])
@pytest.mark.parametrize("key", ["randaugment", "erasing"])
def test_strength_zero_is_off_and_one_is_on(source, key, photos):
    make = load_data if source == "digits" else lambda r: streamed(photos, **{key: getattr(r, key)})
    on, off = make(recipe(**{key: 1 if key == "erasing" else 9})), make(recipe())
    plain = epoch_of(off, 0, 0)
    assert same(plain, epoch_of(on, 0, 0, strength=Regularisation(**{key: 0.0})))
    assert not same(plain, epoch_of(on, 0, 0))


def test_strength_scales_the_magnitude():
    augment = rand_augment(4.5, (32, 48), (0.5, 0.4, 0.3))
    assert {op.magnitude for op in augment.ops} == {4.5} and {op.magnitude_std for op in augment.ops} == {0.5}
    assert augment.ops[0].hparams["translate_const"] == 14 and augment.ops[0].hparams["img_mean"] == (128, 102, 76)
    assert "PosterizeIncreasing" in {op.name for op in augment.ops}
    image = Image.new("RGB", (32, 32), (200, 100, 50))
    strongest = rand_augment(10.0, (32, 32), (0.5, 0.5, 0.5))
    for op in strongest.ops:
        op.prob = 1.0
        assert all(op(image).size == (32, 32) for _ in range(20))  # posterise to 0 bits stops Pillow 13
    assert rand_augment(0.0, (32, 32), (0.5, 0.5, 0.5)) is None


def test_strength_scales_the_share_of_erased_images():
    data = load_data(recipe(erasing=0.8, images=None))
    plain = torch.cat(epoch_of(load_data(recipe(images=None)), 0, 0)[::2])
    for strength in (1.0, 0.5):
        erased = torch.cat(epoch_of(data, 0, 0, strength=Regularisation(erasing=strength))[::2])
        share = (erased != plain).flatten(1).any(1).float().mean()
        assert share == pytest.approx(0.8 * strength, abs=0.05)  # three standard deviations of 1,437 images


# --- labels, schedule, averages, decay --------------------------------------------------------------------


def test_mixed_and_smoothed_labels_cost_what_timm_says():
    images, labels, logits = torch.randn(8, 3, 4, 4), torch.arange(8) % 5, torch.randn(8, 5)
    with seeded(0, device=CPU):
        _, smoothed = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=5)(images.clone(), labels)
    with seeded(0, device=CPU):
        _, mixed = Mixup(0.8, 1.0, label_smoothing=0.0, num_classes=5)(images.clone(), labels)
    ours = F.cross_entropy(logits, mixed, label_smoothing=0.1)
    torch.testing.assert_close(ours, SoftTargetCrossEntropy()(logits, smoothed))


def test_mixed_labels_share_one():
    *_, labels = epoch_of(load_data(recipe(mixup=0.8)), 0, 0)
    torch.testing.assert_close(labels.sum(1), torch.ones(64))
    assert (labels > 0).sum(1).max() == 2
    *_, labels = epoch_of(load_data(recipe()), 0, 0)
    assert labels.dtype == torch.int64


def test_the_learning_rate_by_hand():
    warmup = [0.001 + 0.999 * step / 4 for step in range(4)]
    cosine = [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(7)]
    assert [cosine_share(step, 10, 4) for step in range(11)] == pytest.approx(warmup + cosine, abs=1e-12)


@pytest.mark.parametrize(("steps", "warmup"), [(None, 4), (5, 2), (1, 0)])  # two fifths, as of the whole run
def test_the_learning_rate_is_that_of_pytorchs_schedulers(steps, warmup, monkeypatch):
    settings = recipe(epochs=5, warmup_epochs=2, lr=0.2, images=128)
    run = Run(settings, load_data(settings), Dense(), "x", 0, steps)
    found = []
    monkeypatch.setattr(run.attached, "end_step", lambda: found.append(run.optimizer.param_groups[0]["lr"]))
    assert len(list(run.epochs())) == run.total_epochs
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = CosineAnnealingLR(optimizer, run.steps - warmup)
    if warmup:
        rise = LinearLR(optimizer, 1e-3, total_iters=warmup)
        scheduler = SequentialLR(optimizer, [rise, scheduler], [warmup])
    expected = []
    for _ in range(run.steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(expected, abs=1e-6) and len(found) == (steps or 10)


def test_the_average_follows_the_steps_and_is_what_is_tested_and_saved(tmp_path):
    settings = recipe(ema=0.75, epochs=2, images=64)  # one step an epoch
    data = load_data(settings)
    run = Run(settings, data, METHODS["NetworkExpansion"](stages=2), "x", seed=0)
    epochs = run.epochs()
    before = run.model.conv1.weight.detach().clone()
    next(epochs)
    after = run.model.conv1.weight.detach()
    torch.testing.assert_close(run.result.conv1.weight, 0.75 * before + 0.25 * after)
    assert not torch.equal(before, after) and len(before) == 4
    epoch = next(epochs)
    assert run.result.conv1.weight.shape == run.model.conv1.weight.shape == (8, 3, 3, 3)  # both grew

    def accuracy(model):
        model.eval()
        right = [model(images).argmax(1) == labels for images, labels in data.test_batches()]
        return 100 * float(torch.cat(right).float().mean())

    assert epoch.accuracy == pytest.approx(accuracy(run.result))
    for parameter in run.result.parameters():
        nn.init.zeros_(parameter)
    assert run._evaluate() == pytest.approx(accuracy(run.result)) != pytest.approx(accuracy(run.model))
    run.save(tmp_path / "model.pt")
    assert not torch.load(tmp_path / "model.pt", weights_only=True)["state_dict"]["conv1.weight"].any()


def test_adamw_decays_weights_alone():
    model = build_model("timm:deit_tiny_patch16_224(depth=1, embed_dim=48, img_size=32)", 10)
    optimizer = build_optimizer(model, recipe(optimizer="adamw", weight_decay=0.05))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == set(names.values())
    assert {name for name, value in decay.items() if value == 0.05} == {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
    }
    assert {value for value in decay.values()} == {0.0, 0.05}


def test_gradients_are_clipped():
    moved = []
    for clip_grad in (0.0, 1e-6):
        settings = recipe(clip_grad=clip_grad, weight_decay=0.0, epochs=1, images=64)
        run = Run(settings, load_data(settings), Dense(), "x", seed=0)
        before = run.model.fc.weight.detach().clone()
        next(run.epochs())
        moved.append(float((run.model.fc.weight.detach() - before).norm()))
    assert moved[0] > 1e-3 and 0 < moved[1] < 1e-6


def test_drop_path_reaches_the_model():
    model = build_model("timm:deit_tiny_patch16_224(depth=3, embed_dim=48, img_size=32)", 10, 0.2)
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2])


# --- the loop ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Small(Method):
    """Half the resolution and weak regularisation in the first epoch."""

    operator: str = "orthogonal"
    resizing = "low-frequency"

    def schedule(self, network, epochs):
        return [Stage(0, network.subnetwork(resolution=8)), Stage(1, network.dense)]

    def regularisation(self, epoch, epochs):
        return Regularisation(randaugment=(1 + epoch) / epochs, erasing=0.0)


def test_the_loop_asks_for_what_the_method_says(monkeypatch):
    settings = recipe()
    data = load_data(settings)
    asked, tested, steps = [], [], []
    train, test = Data.train_batches, Data.test_batches
    monkeypatch.setattr(Data, "train_batches", lambda self, *rest: asked.append(rest) or train(self, *rest))
    monkeypatch.setattr(Data, "test_batches", lambda self, size: tested.append(size) or test(self, size))
    run = Run(settings, data, Small(), "small", seed=4)
    monkeypatch.setattr(run.attached, "end_step", lambda: steps.append(1))
    list(run.epochs())
    assert asked == [
        (4, 0, [(8, 8)] * data.steps, "low-frequency", Regularisation(randaugment=0.5, erasing=0.0), 64),
        (4, 1, [(16, 16)] * data.steps, "low-frequency", Regularisation(randaugment=1.0, erasing=0.0), 64),
    ]
    assert tested == [(8, 8), (16, 16), (16, 16)] and len(steps) == 2 * data.steps
    assert [stage.resolution for stage in run.ledger.stages] == [(8, 8), (16, 16)]


def test_a_run_with_everything_on_learns_and_repeats():
    settings = recipe(**EVERYTHING | {"epochs": 6, "randaugment": 1, "images": None})
    data = load_data(settings)
    runs = [Run(settings, data, METHODS["NetworkExpansion"](stages=2), "x", seed=1) for _ in range(2)]
    epochs = [list(run.epochs()) for run in runs]
    assert [epoch.loss for epoch in epochs[0]] == [epoch.loss for epoch in epochs[1]]
    assert epochs[0][-1].accuracy > 25  # ten classes
    one, other = (run.result.state_dict() for run in runs)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_loader_throughput_counts_images_by_the_clock(photos):
    class Slow:
        device = CPU

        def train_batches(self, seed, epoch, size, resizing):
            for _ in range(2):
                time.sleep(0.02)
                yield torch.zeros(5, 3, *size), torch.zeros(5)

    assert 150 < loader_throughput(Slow(), (4, 4), 10) <= 250  # 5 images in 20 ms
    assert loader_throughput(streamed(photos), (16, 16), 4) > 0


# --- recipes and bad input --------------------------------------------------------------------------------


def test_there_is_a_recipe_for_each_network_of_the_papers():
    assert [path.stem for path in RECIPES] == "deit_base deit_small deit_tiny resnet50 volo_d0 volo_d1 volo_d2".split()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_as_it_is_written(path):
    command, config = _parse(["train", "--config", str(path), "--data", "imagenet:FOLDER"])
    assert command == "train" and config.data == "imagenet:FOLDER"
    for key, value in yaml.safe_load(path.read_text()).items():
        assert getattr(config, key) == value, key
    assert config.batch_size == 1024 and config.warmup_epochs == (20 if "volo" in path.stem else 5)
    if "resnet" not in path.stem:
        assert (config.lr, config.weight_decay, config.randaugment) == (1e-3, 0.05, 9)
    with torch.device("meta"):
        build_model(config.model, 1000, config.drop_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mixup": 0.8, "batch_size": 63}, "an even number, found 63"),
        ({"cutmix": 1.0, "batch_size": 63}, "an even number"),
        ({"randaugment": 11}, "randaugment out of range; expected 0 to 10"),
        ({"erasing": 1.5}, "erasing out of range; expected 0 to 1"),
        ({"mixup": 0.8, "token_labels": Path("maps")}, "token_labels: label maps cannot follow mixup.*found mixup 0.8"),
        ({"cutmix": 1.0, "token_labels": Path("maps")}, "token_labels: label maps cannot follow mixup and cutmix"),
        ({"mixup": -1.0}, "mixup out of range; expected at least 0"),
        ({"ema": 1.0}, "ema out of range"),
        ({"ema": math.nan}, "ema out of range"),
        ({"label_smoothing": 1.0}, "label_smoothing out of range"),
        ({"repeated_augmentation": -1}, "repeated_augmentation"),
        ({"warmup_epochs": 2}, "0 to 1, below epochs, found 2"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        recipe(**settings)


@pytest.mark.parametrize("model", ["resnet8(width=8)", "torchvision:resnet18", "timm:vgg11", "test_recipe:own"])
def test_a_model_without_drop_path_says_so(model):
    with pytest.raises(ConfigError, match=r"drop_path_rate.*Set drop_path to 0"):
        build_model(model, 10, 0.1)


def own(num_classes):
    return nn.Linear(3, num_classes)


def test_an_unknown_resizing_is_said_before_training():
    class Nearest(Small):
        resizing = "nearest"

    settings = recipe()
    with pytest.raises(ConfigError, match="no resizing 'nearest'; expected bilinear or low-frequency"):
        Run(settings, load_data(settings), Nearest(), "x", seed=0)


def test_a_file_that_is_no_image_is_named(tmp_path):
    path = tmp_path / "1.jpg"
    Image.effect_noise((160, 120), 50).save(path)
    whole = path.read_bytes()
    for content in (b"cut", b"\xff\xd8\xff\xe0 cut", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"1\.jpg: cannot read the image"):
            read_random_crop(str(path), (16, 16))

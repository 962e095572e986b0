"""Images at the sub-network's size: each resizing, the decoder, another size in each step."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from morphogen.errors import ConfigError
from morphogen.parts.resizing import RESIZINGS, low_frequency, resized
from morphogen.schedule.stages import Regularisation
from morphogen.train.augment import rand_augment
from morphogen.train.images import read_random_crop
from morphogen.train.sources import load_data

from batches import EVERYTHING, epoch_of, of_either, recipe, same, streamed
from nightly import often

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


@pytest.mark.parametrize(
    ("strength", "resizing", "source", "workers"),
    often(
        [
            (strength, resizing, *where)
            for strength in (Regularisation(), Regularisation(0.5, 0.5))
            for resizing in RESIZINGS
            for where in (("digits", 0), ("photos", 0), ("photos", 2))
        ],
        lambda case: (case[3] == 0 and case[0] == Regularisation(0.5, 0.5)) or case[1:] == ("bilinear", "photos", 2),
    ),
)
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

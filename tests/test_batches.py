"""What seed, epoch, strength and subset decide of the batches."""

import itertools
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler

from morphogen.errors import ConfigError
from morphogen.schedule.mini_batch import step_sizes
from morphogen.schedule.stages import Regularisation
from morphogen.train.augment import image_order, rand_augment, seeded
from morphogen.train.images import RandomCrops
from morphogen.train.sources import load_data

from batches import CPU, EVERYTHING, epoch_of, of_either, recipe, same, streamed

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


@pytest.mark.parametrize("source", ["digits", "photos"])
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_share_out_the_images_of_every_step(source, count, photos, monkeypatch):
    settings = {"batch_size": 6, "images": 12, "test_images": 11, "repeated_augmentation": 3}
    # Images in memory are augmented a rank's part at once.
    data = load_data(recipe(**settings)) if source == "digits" else streamed(photos, **settings, randaugment=9)

    def batches():
        ways = data.train_batches(0, 1, batch_size=6 + count), data.subset(12, 0), data.test_batches()
        return [[*zip(*way, strict=True)] for way in ways]

    whole, parts = batches(), []
    for number in range(count):
        monkeypatch.setattr("morphogen.train.data.rank", lambda number=number: number)
        monkeypatch.setattr("morphogen.train.data.ranks", lambda: count)
        parts.append(batches())
    for way in range(2):
        assert [len(images) for images in whole[way][0]] == [[6 + count, 6 - count], [6, 6]][way]
        for number, part in enumerate(parts):
            for all_of_it, mine in zip(whole[way], part[way], strict=True):
                assert same([tensor[number::count] for tensor in all_of_it], mine)
    tested = [[torch.cat(tensors) for tensors in batch] for batch in (whole[2], *(part[2] for part in parts))]
    for number, mine in enumerate(tested[1:]):
        assert same([tensor[number::count] for tensor in tested[0]], mine)


def test_every_step_of_grown_batches_can_be_dealt_out():
    for ranks in (2, 3, 8):
        for share, steps, more in itertools.product((1, 4, 7), (1, 5, 9), range(12)):
            first, size = ranks * share, ranks * (share + more)
            assert not any(images % ranks for images in step_sizes(steps * first, size, first))


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
    once = image_order(5, 10**30, torch.Generator().manual_seed(7))  # one image, as often as there are images
    assert (
        once.tolist() == image_order(5, 5, torch.Generator().manual_seed(7)).tolist() and len(set(once.tolist())) == 1
    )


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

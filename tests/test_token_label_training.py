"""The trainer on label maps."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.datasets import ImageFolder

from morphogen.cli import main
from morphogen.errors import ConfigError
from morphogen.methods import AutoProg, Dense, Prog
from morphogen.parts import Search
from morphogen.train.config import Recipe
from morphogen.train.loop import Run
from morphogen.train.sources import load_data
from morphogen.train.token_labels.label_maps import About, LabelMaps
from morphogen.train.token_labels.teacher import make_label_maps

from nightly import often

VOLO_64 = (
    "timm.models.volo:VOLO(layers=(2, 2), embed_dims=(16, 16), num_heads=(2, 2), downsamples=(True, False),"
    " outlook_attention=(True, False), img_size=64, stem_hidden_dim=8{})"
)
MIXING = VOLO_64.format(", use_mix_token=True")


class Colours(torch.nn.Module):
    """A teacher that sees which of red, green and blue is strongest at each place."""

    num_features, output_fmt = 3, "NCHW"

    def forward_features(self, images):
        return F.adaptive_avg_pool2d(images, 8)

    def forward_head(self, features):
        return 4 * features.flatten(1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noisy JPEGs, reddish, greenish and bluish, too large for memory, and their label maps."""
    root, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 14), ("val", 6)):
        for colour, label in enumerate("abc"):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 160, (8, 10, 3))
                pixels[..., colour] += 80
                image = Image.fromarray(pixels.astype(np.uint8)).resize((120 + 4 * i, 96), Image.Resampling.BICUBIC)
                image.save(root / part / label / f"{i}.jpg")
    images, maps = ImageFolder(str(root / "train")), root / "maps"
    assert make_label_maps(Colours(), images, maps, top_k=2, image_size=64, workers=0) == (42, 100.0)
    return root


def labelled(photos, **settings):
    own = {"data": str(photos), "token_labels": photos / "maps", "model": MIXING, "image_size": 64, "batch_size": 6}
    schedule = {"epochs": 2, "optimizer": "adamw", "lr": 5e-3, "workers": 0, "label_smoothing": 0.1, "device": "cpu"}
    return Recipe(**own | schedule | settings)


@pytest.mark.nightly
def test_a_volo_grows_and_learns_on_label_maps(photos):
    """Depth and resolution grow between the epochs; chance is 33 %."""
    recipe = labelled(photos, epochs=4, lr=1e-2, drop_path=0.1, erasing=0.25, ema=0.5, precision="bfloat16")
    run = Run(recipe, load_data(recipe), Prog(stages=2, depth_operator="interpolate"), "prog", seed=0)
    grids = []
    forward = run.model.forward_train
    run.model.forward_train = lambda x: grids.append(forward(x)) or grids[-1]
    epochs = list(run.epochs())
    assert [output[1].shape[1] for output in grids] == [4] * 14 + [16] * 14
    assert [stage.resolution for stage in run.ledger.stages] == [(32, 32), (64, 64)]
    assert len({output[2] for output in grids}) > 2  # MixToken's boxes
    losses = [epoch.loss for epoch in epochs]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] and epochs[-1].accuracy > 80


@pytest.mark.nightly
@pytest.mark.parametrize("recycling", [(True,), (True, False)])
def test_a_volo_searches_on_label_maps(recycling, photos):
    """At the candidates' sizes, by the token loss; a search that is thrown away sees what one that is kept does."""
    recipe = labelled(photos, epochs=4, lr=1e-2, drop_path=0.1, ema=0.5)
    data, losses = load_data(recipe), []
    for recycle in recycling:
        method = AutoProg(stages=2, search_epochs=1, dimensions=("resolution",), subset=12, recycle=recycle)
        run = Run(recipe, data, method, "autoprog", seed=0)
        epochs = list(run.epochs())
        assert len(epochs) == 4 + (not recycle) and epochs[-1].loss < epochs[0].loss
        (found,) = run.ledger.searches
        losses.append([candidate["loss"] for candidate in found["candidates"]])
        assert run.ledger.stages[-1].resolution == (64, 64)
        assert (
            run.attached.part(Search).searching is None and run.attached.network.current == run.attached.network.dense
        )
    assert losses[0] == losses[-1] and len({*losses[0]}) == 3 and all(map(math.isfinite, losses[0]))


def test_a_subset_larger_than_the_data_is_refused(photos):
    recipe = labelled(photos, epochs=4)
    with pytest.raises(ConfigError, match=r"a subset larger than the data; expected at most 42, found 10000"):
        method = AutoProg(stages=2, search_epochs=1, dimensions=("depth",), subset=10000)
        Run(recipe, load_data(recipe), method, "x", seed=0)


@pytest.mark.nightly
def test_runs_on_label_maps_repeat_in_turn_or_alone(photos):
    recipe = labelled(photos, randaugment=9, erasing=0.5)
    data = load_data(recipe)
    runs = [Run(recipe, data, Dense(), "x", seed=1) for _ in range(3)]
    alone, *turns = [[epoch.loss for epoch in runs[0].epochs()], *zip(*(run.epochs() for run in runs[1:]), strict=True)]
    for loss, epochs in zip(alone, turns, strict=True):
        assert {epoch.loss for epoch in epochs} == {loss}


def test_label_maps_change_neither_the_pixels_nor_with_the_workers(photos):
    settings = {"randaugment": 9, "erasing": 0.5, "repeated_augmentation": 3}
    plain = list(load_data(labelled(photos, token_labels=None, **settings)).train_batches(0, 1, (32, 48)))
    alone, shared = (
        list(load_data(labelled(photos, workers=workers, **settings)).train_batches(0, 1, (32, 48)))
        for workers in (0, 2)
    )
    for (images, labels), (pixels, maps), (same, others) in zip(plain, alone, shared, strict=True):
        assert torch.equal(images, pixels) and torch.equal(labels, maps.labels)
        assert torch.equal(images, same) and all(map(torch.equal, maps, others))


@pytest.mark.parametrize("resizing", often(["bilinear", "low-frequency"], lambda each: each == "bilinear"))
def test_label_maps_follow_a_size_for_each_step(resizing, photos):
    data = load_data(labelled(photos, workers=2, randaugment=9, erasing=0.5, repeated_augmentation=3))
    sizes = [((32, 48), (64, 64), (32, 32))[step % 3] for step in range(data.steps)]
    whole = {size: list(data.train_batches(0, 1, size, resizing)) for size in set(sizes)}
    for step, (images, maps) in enumerate(data.train_batches(0, 1, sizes, resizing)):
        expected, others = whole[sizes[step]][step]
        assert images.shape[2:] == sizes[step] and torch.equal(images, expected)
        assert all(map(torch.equal, maps, others))


def test_a_subset_has_label_maps(photos):
    subset = load_data(labelled(photos, workers=2, randaugment=9)).subset(14, 0)
    first, second = list(subset), list(subset)
    for (images, maps), (same, others) in zip(first, second, strict=True):
        assert images.shape == (6, 3, 64, 64) and torch.equal(images, same) and all(map(torch.equal, maps, others))
    assert len(first) == subset.steps == 2


def test_only_the_chosen_images_need_maps(photos):
    recipe = labelled(photos, images=12)
    data = load_data(recipe)
    assert len(data.maps.names) == data.images == 12 and data.teacher.startswith("Colours (")
    for (path, _), name in zip(data.train, data.maps.names, strict=True):
        assert path.endswith(name)


def test_what_does_not_fit_is_said_before_training(photos, tmp_path):
    for model in ("resnet8(width=8)", VOLO_64.format(""), VOLO_64.format(", use_mix_token=True, use_aux_head=False")):
        recipe = labelled(photos, model=model)
        with pytest.raises(ConfigError, match=r"no predictions for its tokens.*use_mix_token=True"):
            Run(recipe, load_data(recipe), Dense(), "x", seed=0)
    with pytest.raises(ConfigError, match=r"digits: token labelling needs images that are decoded from files.*64 pix"):
        load_data(labelled(photos, data="digits", image_size=None))
    with pytest.raises(ConfigError, match=r"no label maps here.*morphogen label-maps"):
        load_data(labelled(photos, token_labels=tmp_path))
    LabelMaps.create(tmp_path / "others", About("hand", ("a", "b"), 1, (2, 2)))
    with pytest.raises(ConfigError, match="label maps of other classes"):
        load_data(labelled(photos, token_labels=tmp_path / "others"))


@pytest.mark.nightly
def test_a_comparison_keeps_the_teacher_and_no_paths(photos, tmp_path):
    recipe = labelled(photos, epochs=1)
    settings = {key: getattr(recipe, key) for key in ("model", "data", "token_labels", "image_size", "batch_size")}
    command = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    more = ["--methods", "[Prog(stages=1)]", "--epochs", "1", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert main(["compare", *command, *more]) == 0
    record = json.loads((tmp_path / "out" / "runs.jsonl").read_text().splitlines()[0])
    assert record["recipe"]["token_labels"].startswith("Colours (") and str(photos) not in json.dumps(record)

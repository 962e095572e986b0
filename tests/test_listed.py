"""Images listed in a CSV file, a Hugging Face data set, webdataset's shards: the same as in folders."""

import csv
import io
import tarfile

import pytest
import torch
from PIL import Image

from morphogen.cli import main
from morphogen.errors import ConfigError
from morphogen.train.config import Recipe
from morphogen.train.sources import load_data

IMAGES = [
    (f"{split}_{label}_{i}", label, split) for split in ("train", "val") for label in ("cat", "dog") for i in range(5)
]


def image(number, side=8):
    return Image.new("RGB", (side, side), (10 * number, 255 - 10 * number, 99))


def encoded(number, side=8):
    file = io.BytesIO()
    image(number, side).save(file, "PNG")
    return file.getvalue()


def listed(folder, columns=("path", "label", "split"), images=IMAGES, side=8):
    with open(folder / "images.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number, (name, *rest) in enumerate(images):
            image(number, side).save(folder / f"{name}.png")
            writer.writerow([f"{name}.png", *rest][: len(columns)])
    return f"csv:{folder / 'images.csv'}"


def check(source, side=8):
    """Ten images for training and ten for testing, in order, of two named classes."""
    data = load_data(Recipe(data=source, batch_size=5, workers=0, image_size=side))
    assert list(data.classes) == ["cat", "dog"] and data.counts.tolist() == [5, 5]
    (images, labels) = (torch.cat(each) for each in zip(*data.test_batches(), strict=True))
    assert labels.tolist() == [0] * 5 + [1] * 5
    red = ((images * data.std.view(3, 1, 1) + data.mean.view(3, 1, 1)) * 255).round()[:, 0, 0, 0]
    assert red.tolist() == [10 * number for number in range(10, 20)]
    assert data.contents == load_data(Recipe(data=source, batch_size=5, workers=0, image_size=side)).contents
    next(data.train_batches(0, 0))


@pytest.mark.parametrize("side", [8, 80])
def test_a_csv_file(side, tmp_path):
    check(listed(tmp_path, side=side), side)


@pytest.mark.parametrize("side", [8, 80])
def test_shards(side, tmp_path):
    pytest.importorskip("webdataset")
    for split in ("train", "val"):
        for shard in range(2):  # a class in each
            with tarfile.open(tmp_path / f"{split}-{shard}.tar", "w") as tar:
                for number, (name, label, of) in enumerate(IMAGES):
                    if of == split and label == ("cat", "dog")[shard]:
                        for end, content in (("png", encoded(number, side)), ("cls", label.encode())):
                            entry = tarfile.TarInfo(f"{name}.{end}")
                            entry.size = len(content)
                            tar.addfile(entry, io.BytesIO(content))
    check(f"wds:{tmp_path}/train-*.tar", side)
    with pytest.raises(ConfigError, match="no such shards"):
        load_data(Recipe(data=f"wds:{tmp_path}/training-*.tar"))
    (tmp_path / "train-1.tar").write_bytes(b"cut")
    with pytest.raises(ConfigError, match="webdataset cannot read it"):
        load_data(Recipe(data=f"wds:{tmp_path}/train-*.tar"))


@pytest.mark.parametrize("side", [8, 80])
def test_a_hugging_face_data_set(side, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    parts = {}
    for split, name in (("train", "train"), ("val", "test")):
        rows = [(number, label) for number, (_, label, of) in enumerate(IMAGES) if of == split]
        columns = {"image": [image(number, side) for number, _ in rows], "label": [label for _, label in rows]}
        parts[name] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    check(f"hf:{tmp_path / 'set'}", side)
    with pytest.raises(ConfigError, match="datasets cannot read it"):
        load_data(Recipe(data=f"hf:{tmp_path / 'none'}"))


def test_without_a_split_every_fifth_of_a_class_is_held_out(tmp_path):
    with pytest.warns(UserWarning, match="no column split"):
        data = load_data(Recipe(data=listed(tmp_path, ("path", "label")), batch_size=4, workers=0))
    assert data.counts.tolist() == [8, 8] and len(data.test_images) == 4


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    images = [(f"{split}{n}", str(n), split) for split in ("train", "test") for n in (10, 9, 2)]
    data = load_data(Recipe(data=listed(tmp_path, images=images), batch_size=2))
    assert list(data.classes) == ["2", "9", "10"]


@pytest.mark.parametrize(
    ("columns", "images", "words"),
    [
        (("file", "label"), IMAGES, "expected path, label and perhaps split, found file, label"),
        (("path", "label", "split"), [*IMAGES, ("x", "cat", "holdout")], "'holdout'"),
        (("path", "label", "split"), IMAGES[:10], "each image in train, or in val or test"),
        (("path", "label", "split"), [*IMAGES, ("x", "cow", "val")], "a class is tested that is not trained"),
        (("path", "label", "split"), [*IMAGES, ("x", "", "val")], "line 22 has no path, or no label"),
        (("path", "label", "split"), [], "no image"),
    ],
)
def test_lists_that_do_not_fit_are_one_line(columns, images, words, tmp_path, capsys):
    source = listed(tmp_path, columns, images)
    assert main(["train", "--data", source, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_listed_image_that_is_gone_is_named(tmp_path):
    source = listed(tmp_path)
    (tmp_path / "val_dog_4.png").unlink()
    with pytest.raises(ConfigError, match=r"line 21 names an image that is not there; found val_dog_4\.png"):
        load_data(Recipe(data=source))


def test_a_near_miss_of_a_source_is_suggested(tmp_path):
    with pytest.raises(ConfigError, match=r"Did you mean digits\?"):
        load_data(Recipe(data="digit"))

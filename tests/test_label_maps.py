"""Label maps: teachers, maps on disk and every way they can be wrong, and the command that makes them."""

import json

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torchvision.datasets import ImageFolder, ImageNet
from torchvision.transforms import v2

from morphogen.cli import main
from morphogen.errors import ConfigError
from morphogen.train.images import MapCrops
from morphogen.train.token_labels.label_maps import About, LabelMaps, image_names
from morphogen.train.token_labels.objective import (
    predict,
    token_label_loss,
    token_targets,
    with_true_labels,
)
from morphogen.train.token_labels.teacher import class_map, load_teacher, make_label_maps, top_scores

from batches import crops
from nets import teacher, tiny_volo

TO_TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


@pytest.fixture
def images(tmp_path):
    """Three classes of two small JPEGs, none square."""
    generator = np.random.default_rng(0)
    for label in "abc":
        folder = tmp_path / "data" / "train" / label
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = generator.integers(0, 256, (40 + 8 * i, 56, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return ImageFolder(str(tmp_path / "data" / "train"))


@pytest.fixture
def maps(images, tmp_path):
    make_label_maps(teacher(), images, tmp_path / "maps", top_k=2, image_size=64, workers=0)
    return LabelMaps.open(tmp_path / "maps")


# ---------------------------------------------------------------- teachers


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [("resnet10t", 64, 2), ("nfnet_l0", 64, 2), ("swin_tiny_patch4_window7_224", 224, 7), ("mixer_s32_224", 224, 7)],
)
def test_the_mean_over_places_is_what_a_pooled_teacher_says(name, size, grid):
    model = timm.create_model(name, num_classes=4).eval()
    torch.nn.init.normal_(model.get_classifier().weight)
    x = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        by_place, whole = class_map(model, x), model(x)
    assert by_place.shape == (2, 4, grid, grid) and whole.std() > 0.01
    assert torch.allclose(by_place.mean((2, 3)), whole, atol=1e-4 * whole.abs().max().item())


@pytest.mark.parametrize("prefix", [{}, {"class_token": True}, {"class_token": True, "reg_tokens": 4}])
def test_a_vision_transformers_places_are_its_patches(prefix):
    prefix = {"class_token": False, "global_pool": "avg"} | prefix
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    model = timm.models.VisionTransformer(**shape, **prefix).eval()
    x = torch.randn(2, 3, 32, 32)
    patches = model.forward_features(x)[:, -16:]
    expected = model.head(model.fc_norm(patches)).transpose(1, 2).view(2, 3, 4, 4)
    assert torch.allclose(class_map(model, x), expected, atol=1e-6)


def test_a_volo_teacher_speaks_through_its_token_head():
    model = tiny_volo().eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model.aux_head(model.forward_features(x)[:, 1:]).transpose(1, 2).view(2, 5, 4, 4)
    assert torch.allclose(class_map(model, x), expected)


@pytest.mark.parametrize(
    ("name", "words"), [("pit_ti_224", "one place"), ("crossvit_tiny_240", "neither a map nor tokens")]
)
def test_a_teacher_without_places_is_refused(name, words):
    model = timm.create_model(name).eval()
    with pytest.raises(ConfigError, match=words):
        class_map(model, torch.zeros(1, 3, *model.default_cfg["input_size"][1:]))
    with pytest.raises(ConfigError, match="forward_features fails"):
        class_map(torch.nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 8, 8))


# ---------------------------------------------------------------- maps on disk


def test_a_map_is_the_teachers_own_top_scores(images, maps, tmp_path):
    model = teacher()
    name = image_names(images)[3]
    assert name == "b/1.jpg"
    scores, classes = maps.read(name)
    mean, std = (torch.tensor(model.default_cfg[key])[:, None, None] for key in ("mean", "std"))
    interpolation = v2.InterpolationMode(model.default_cfg["interpolation"])
    image = TO_TENSOR(v2.Resize((64, 64), interpolation)(images.loader(images.samples[3][0])))
    expected, indices = top_scores(class_map(model, (image[None] - mean) / std), 2)
    assert torch.equal(classes, indices[0].int()) and torch.allclose(scores.float(), expected[0], rtol=1e-3, atol=1e-3)
    size = (tmp_path / "maps" / "b" / "1.jpg.safetensors").stat().st_size
    assert size - 4 * 2 * 2 * 2 < 200  # no more than a header beside the numbers


def test_maps_made_from_a_folder_serve_torchvisions_imagenet(images, maps, tmp_path):
    """Which calls the folder above its own, and its classes by words."""
    torch.save(({label: (f"{label} in words",) for label in "abc"}, []), tmp_path / "data" / "meta.bin")
    imagenet = ImageNet(str(tmp_path / "data"), "train")
    assert imagenet.classes[0] == ("a in words",) and image_names(imagenet) == image_names(images)
    assert maps.of(imagenet, [1, 5]).names == ["a/1.jpg", "c/1.jpg"]


def test_large_class_numbers_survive(tmp_path):
    """float16 holds whole numbers up to 2,048 only."""
    maps = LabelMaps.create(tmp_path, About("hand", tuple(map(str, range(21843))), 1, (1, 2)))
    maps.write("a/0.jpg", torch.zeros(1, 1, 2), torch.tensor([[[21841, 2049]]]))
    assert maps.read("a/0.jpg")[1].tolist() == [[[21841, 2049]]]


def test_making_goes_on_where_it_stopped(images, maps, tmp_path):
    folder = tmp_path / "maps"
    before = {name: (folder / f"{name}.safetensors").stat().st_mtime_ns for name in image_names(images)}
    assert LabelMaps.open(folder).about.teacher.startswith("resnet10t (")
    torn = folder / "c" / "0.jpg.safetensors"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-5])
    (folder / "a" / "1.jpg.safetensors").unlink()
    assert make_label_maps(teacher(), images, folder, top_k=2, image_size=64, workers=0)[0] == 2
    again = {name: (folder / f"{name}.safetensors").stat().st_mtime_ns for name in before}
    assert {name for name in before if again[name] != before[name]} == {"a/1.jpg", "c/0.jpg"}
    assert torn.read_bytes() == whole and not list(folder.rglob("*.part"))
    assert make_label_maps(teacher(), images, folder, top_k=2, image_size=64, workers=0) == (0, 100.0)
    with pytest.raises(ConfigError, match="maps of another teacher"):
        make_label_maps(teacher(seed=2), images, folder, top_k=2, image_size=64, workers=0)
    with pytest.raises(ConfigError, match="maps of another grid"):
        make_label_maps(teacher(), images, folder, top_k=2, image_size=128, workers=0)


def test_maps_that_cannot_be_used_are_one_line_each(images, maps, tmp_path):
    folder = tmp_path / "maps"
    path = folder / "b" / "0.jpg.safetensors"
    whole = path.read_bytes()

    path.write_bytes(whole[:-5])
    with pytest.raises(ConfigError, match=r"missing or cut short for 1 of 6 images.*b/0\.jpg.*label-maps"):
        maps.of(images, range(6))
    with pytest.raises(ConfigError, match=r"b/0\.jpg.*cannot read the label map.*label-maps again"):
        maps.read("b/0.jpg")
    path.unlink()
    with pytest.raises(ConfigError, match=r"missing or cut short for 1 of 6 images"):
        maps.of(images, range(6))
    assert maps.of(images, [0, 5])[1][0].shape == (2, 2, 2)  # those that are not chosen need no map
    with pytest.raises(ConfigError, match="cannot read the label map"):
        maps.read("b/0.jpg")

    maps.write("b/0.jpg", torch.zeros(2, 2, 2), torch.full((2, 2, 2), 7))
    with pytest.raises(ConfigError, match=r"another kind.*classes below 3, found .* up to 7"):
        maps.read("b/0.jpg")
    maps.write("b/0.jpg", torch.zeros(2, 3, 3), torch.zeros(2, 3, 3))
    with pytest.raises(ConfigError, match=r"another kind.*\(2, 2, 2\).*\(2, 3, 3\)"):
        maps.read("b/0.jpg")
    path.write_bytes(whole)

    about = json.loads((folder / "label_maps.json").read_text())
    about["classes"] = about["classes"][:2]
    (folder / "label_maps.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="maps of other classes"):
        LabelMaps.open(folder).of(images, range(6))
    with pytest.raises(ConfigError, match="no label maps here"):
        LabelMaps.open(tmp_path)


def test_a_teacher_of_other_classes_is_refused(images, tmp_path):
    with pytest.raises(ConfigError, match="expected 3 classes, found 4"):
        make_label_maps(teacher(classes=4), images, tmp_path / "maps", image_size=64, workers=0)
    with pytest.raises(ConfigError, match=r"ResNet: cannot make label maps.*timm classifier"):
        make_label_maps(torchvision.models.resnet18(), images, tmp_path / "maps", image_size=64, workers=0)
    assert not (tmp_path / "maps").exists()


def test_a_batch_is_what_the_loader_makes_of_the_images(images, maps):
    pixels, labels = next(iter(crops(images, maps, 32, 6)))
    assert isinstance(labels, MapCrops) and pixels.shape == (6, 3, 32, 32)
    assert labels.labels.tolist() == [0, 0, 1, 1, 2, 2] and labels.flipped.dtype == torch.bool
    assert labels.scores.shape == labels.classes.shape == (6, 2, 2, 2)
    for grid in ((2, 2), (1, 3)):  # the input grew, the loader goes on
        targets = token_targets(labels.to(torch.device("cpu")), 3, grid)
        assert targets.image.shape == (6, 3) and targets.tokens.shape == (6, grid[0] * grid[1], 3)
        assert torch.allclose(targets.tokens.sum(2), torch.ones(6, grid[0] * grid[1]))


# ---------------------------------------------------------------- the command


def command(images, tmp_path, *more, teacher="resnet10t(pretrained=False, num_classes=3)"):
    data = str(tmp_path / "data")
    size = ["--image_size", "64", "--workers", "0", "--device", "cpu"]
    return ["label-maps", "--data", data, "--teacher", teacher, "--output", str(tmp_path / "out"), *size, *more]


def test_the_command_makes_maps_that_train(images, tmp_path, capsys):
    weights = tmp_path / "teacher.pt"
    torch.save(teacher().state_dict(), weights)
    name = f"resnet10t(checkpoint_path={str(weights)!r}, num_classes=3)"
    assert main(command(images, tmp_path, teacher=name)) == 0
    output = capsys.readouterr().out
    assert "6 label maps made" in output and "own class first" in output
    pixels, labels = next(iter(crops(images, LabelMaps.open(tmp_path / "out"), 64, 6)))
    predictions = predict(tiny_volo(use_mix_token=True), pixels / 255)
    token_label_loss(predictions, with_true_labels(token_targets(labels, 5, (4, 4)), labels.labels)).backward()
    assert main(command(images, tmp_path, teacher=name)) == 0
    assert "0 label maps made, 6 were there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "teacher", "words"),
    [
        (["--data", "nowhere"], "resnet10t(pretrained=False, num_classes=3)", "no such image folder"),
        ([], "resnet1O", "no timm model 'resnet1O'"),
        ([], "resnet10t(pretrained=False, num_classes=4)", "expected 3 classes, found 4"),
        ([], "resnet10t(checkpoint_path='none.pt')", "cannot load the teacher"),
        ([], "pit_ti_224(pretrained=False, img_size=64, num_classes=3)", "one place"),
        (["--top_k", "0"], "resnet10t", "top_k"),
        (["--device", "cuda:99"], "resnet10t(pretrained=False, num_classes=3)", "cuda:99"),
    ],
)
def test_bad_input_is_one_line(more, teacher, words, images, tmp_path, capsys):
    assert main(command(images, tmp_path, *more, teacher=teacher)) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and words in error, error


def test_a_torn_image_is_one_line(images, tmp_path, capsys):
    path = tmp_path / "data" / "train" / "b" / "0.jpg"
    path.write_bytes(path.read_bytes()[:60])
    assert main(command(images, tmp_path, "--workers", "1")) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and "cannot read the image" in error and "b/0.jpg" in error, error


def test_teachers_come_by_timms_names():
    assert load_teacher("timm:resnet10t(pretrained=False, num_classes=7)").num_classes == 7

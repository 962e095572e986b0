"""Token labelling by hand-worked numbers, real crops, and every way the maps can be wrong."""

import json
import math

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.models.volo import VOLO
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder, ImageNet
from torchvision.transforms import v2

from morphogen.cli import main
from morphogen.errors import ConfigError
from morphogen.methods import AutoProg, Dense, Prog
from morphogen.train.config import Recipe
from morphogen.train.data import load_data
from morphogen.train.images import MapCrops, RandomCrops
from morphogen.train.label_maps import About, LabelMaps, image_names
from morphogen.train.loop import Run
from morphogen.train.teacher import class_map, load_teacher, make_label_maps, top_scores
from morphogen.train.token_labels import (
    Predictions,
    TokenTargets,
    predict,
    token_grid,
    token_label_loss,
    token_targets,
    with_true_labels,
)

TO_TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def teacher(classes=3, seed=1):
    torch.manual_seed(seed)
    return timm.create_model("resnet10t", num_classes=classes).eval()


def tiny_volo(**settings):
    """16 tokens of an image of 64 x 64."""
    shape = {"layers": [1, 1], "embed_dims": [8, 8], "num_heads": [2, 2], "downsamples": (True, False)}
    return VOLO(
        **shape, outlook_attention=(True, False), img_size=64, stem_hidden_dim=8, **{"num_classes": 5} | settings
    ).train()


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


# ---------------------------------------------------------------- loss


def test_the_loss_by_hand():
    """Two images, two classes, four tokens in a row, the last of them mixed: a quarter of the box's area."""
    ln3 = math.log(3)
    output = Predictions(torch.tensor([[ln3, 0.0], [0.0, 0.0]]), torch.zeros(2, 4, 2), (0, 3, 1, 4))
    targets = TokenTargets(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.full((2, 4, 2), 0.5))
    # log p of the first image: log 3/4 and log 1/4; its target 3/4 and 1/4. The second image, and all tokens: log 2.
    first = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert token_label_loss(output, targets).item() == pytest.approx((first + math.log(2)) / 2 + 0.5 * math.log(2))
    unmixed = output._replace(box=(0, 0, 0, 0))
    assert token_label_loss(unmixed, targets, dense_weight=0).item() == pytest.approx(
        (-math.log(0.75) + math.log(2)) / 2
    )


def test_tokens_answer_for_their_own_image_one_by_one():
    """The first token is mixed, and sure of what its own image's map says."""
    tokens = torch.zeros(2, 2, 2)
    tokens[0, 0, 1] = math.log(7)  # probabilities 1/8 and 7/8
    own = torch.tensor([[[0.0, 1.0], [0.25, 0.75]], [[1.0, 0.0], [1.0, 0.0]]])
    targets = TokenTargets(torch.full((2, 2), 0.5), own)
    loss = token_label_loss(Predictions(torch.zeros(2, 2), tokens, (0, 0, 1, 1)), targets)
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * (-math.log(7 / 8) + 3 * math.log(2)) / 4)


def test_the_models_token_predictions_are_of_their_own_images():
    """What a VOLO returns has MixToken undone, so the targets of tokens must not be mixed."""

    def kept_apart(tokens):  # a body in which tokens do not see each other
        return F.avg_pool2d(tokens.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)

    model = tiny_volo(use_mix_token=True)
    model.patch_embed.eval()
    model.forward_tokens = kept_apart
    x = torch.randn(4, 3, 64, 64)
    boxes = set()
    for _ in range(5):
        _, mixed, box = model.forward_train(x)
        model.mix_token = False
        _, alone, none = model.forward_train(x)
        model.mix_token = True
        assert none == (0, 0, 0, 0) and torch.allclose(mixed, alone, atol=1e-6)
        boxes.add(box)
    assert any((r2 - r1) * (c2 - c1) for r1, c1, r2, c2 in boxes)


def test_the_box_is_the_share_of_the_other_image():
    """Rows, columns and area of the box as the loss reads them are what the model mixed in."""
    model = tiny_volo(use_mix_token=True)
    seen = []
    model.patch_embed.forward = lambda x: x
    model.forward_tokens = lambda x: seen.append(x) or F.avg_pool2d(x.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
    x = torch.eye(4, 8)[:, :, None, None].expand(-1, -1, 8, 8)  # image i is the vector e_i everywhere
    for _ in range(5):
        _, _, (r1, c1, r2, c2) = model.forward_train(x)
        share = (r2 - r1) * (c2 - c1) / 16
        own = torch.eye(4, 8)
        assert torch.allclose(seen[-1].mean((1, 2)), (1 - share) * own + share * own.flip(0))


def test_the_head_is_part_of_the_prediction():
    """timm's forward_train stops before it."""
    for classes in (5, 8):  # 8 is also the number of features
        model = tiny_volo(num_classes=classes, use_mix_token=True)
        model.patch_embed.eval()
        model.mix_token = False
        x = torch.randn(2, 3, 64, 64)
        image, tokens, _ = predict(model, x)
        model.eval()
        assert torch.allclose(model(x), image + 0.5 * tokens.amax(1), atol=1e-6)


def test_a_volo_learns_its_tokens():
    model = tiny_volo(use_mix_token=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    x = torch.randn(8, 3, 64, 64)
    tokens = F.one_hot(torch.randint(5, (8, 16)), 5).float()
    targets = TokenTargets(tokens.mean(1), tokens)
    losses = []
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16):
            loss = token_label_loss(predict(model, x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0] and all(p.grad is not None for p in model.parameters())


def test_output_or_targets_that_do_not_fit_are_one_line():
    targets = TokenTargets(torch.rand(2, 5), torch.rand(2, 9, 5))
    for model in (teacher(), tiny_volo().eval()):
        with pytest.raises(ConfigError, match=r"no predictions for its tokens.*VOLO in training mode"):
            predict(model, torch.zeros(2, 3, 64, 64))
    with pytest.raises(ConfigError, match=r"expected .*\(2, 16, 5\), found \(2, 9, 5\)"):
        token_label_loss(Predictions(torch.zeros(2, 5), torch.zeros(2, 16, 5), (0, 0, 0, 0)), targets)


def test_true_labels_by_hand():
    """Half each where the teacher is right, a tenth truth where it is wrong; smoothing 0.2 of two classes."""
    teacher_says = torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    targets = TokenTargets(teacher_says, torch.rand(2, 4, 2))
    blended = with_true_labels(targets, torch.tensor([0, 1]), smoothing=0.2)
    assert torch.allclose(blended.image, torch.tensor([[0.75, 0.25], [0.55, 0.45]]))
    assert blended.tokens is targets.tokens


# ---------------------------------------------------------------- targets of a crop


def crop_of(scores, classes, box=(0.0, 0.0, 1.0, 1.0), flipped=False):
    one = (torch.tensor(0), scores, classes.int(), torch.tensor(box), torch.tensor(flipped))
    return MapCrops(*(tensor[None] for tensor in one))


def crops(images, maps, size, count):
    """A loader of random crops of the images in turn, in batches of 6."""
    dataset = RandomCrops(images.samples, {(size, size): None}, (0,), maps.of(images, range(len(images))))
    items = [(i, i % len(images), (size, size)) for i in range(count)]
    return DataLoader(dataset, 6, sampler=items, num_workers=1)


def test_a_quarter_of_a_map_by_hand():
    """A 2 x 2 map with one class a place; the upper right quarter, then the whole mirrored."""
    scores, classes = torch.full((1, 2, 2), math.log(3)), torch.tensor([[[0, 1], [2, 3]]])
    own = torch.full((4, 4), 1 / 6).fill_diagonal_(1 / 2)  # 3 of 3 + 1 + 1 + 1
    whole = token_targets(crop_of(scores, classes), 4, (2, 2))
    assert torch.allclose(whole.tokens[0], own) and torch.allclose(whole.image[0], torch.full((4,), 1 / 4))
    mirrored = token_targets(crop_of(scores, classes, flipped=True), 4, (2, 2))
    assert torch.allclose(mirrored.tokens[0], own[[1, 0, 3, 2]])
    # Two samples an axis: the quarter's outer ones see class 1 alone, the inner ones 1/4 of a neighbour.
    corner = token_targets(crop_of(scores, classes, (0.5, 0.0, 1.0, 0.5)), 4, (1, 1))
    assert corner.tokens.shape == (1, 1, 4) and corner.image[0].argmax() == 1
    assert torch.allclose(corner.tokens[0], corner.image)


def test_left_out_classes_share_what_the_teacher_leaves():
    logits = torch.randn(2, 6, 3, 4) * 3 - 20  # far from 0, where the left out are put
    scores, classes = top_scores(logits, 2)
    whole = torch.stack([torch.tensor([0.0, 0.0, 1.0, 1.0])] * 2)
    images = MapCrops(torch.zeros(2), scores, classes, whole, torch.zeros(2, dtype=torch.bool))
    targets = token_targets(images, 6, (3, 4)).tokens.transpose(1, 2).view(2, 6, 3, 4)
    probabilities = logits.softmax(1)
    assert torch.allclose(targets.gather(1, classes), probabilities.gather(1, classes), atol=1e-5)
    rest = targets.scatter(1, classes, torch.nan)
    assert torch.allclose(rest.nan_to_num(-1).amax(1), rest.nan_to_num(2).amin(1), atol=1e-5)


def positions(rows, columns):
    """A map whose first class scores the place's own column, the second its row, as shares of the image."""
    x, y = (torch.arange(columns) + 0.5) / columns, (torch.arange(rows) + 0.5) / rows
    return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)])


@pytest.mark.parametrize("grid", [(4, 4), (7, 7), (14, 14)])
def test_the_map_follows_the_image(grid, tmp_path):
    """Red is the column and green the row of each pixel; the map says the same of its own places."""
    height, width = 120, 200
    ramp = (positions(height, width) * 255).round().byte()
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "b").mkdir()
    picture = torch.stack([*ramp, torch.zeros_like(ramp[0])], dim=-1).numpy()
    for name in ("a/0.png", "b/1.png"):
        Image.fromarray(picture).save(tmp_path / "data" / name)
    dataset = ImageFolder(str(tmp_path / "data"))
    maps = LabelMaps.create(tmp_path / "maps", About("hand", ("a", "b"), 2, (18, 18)))
    for name in image_names(dataset):
        maps.write(name, positions(18, 18), torch.tensor([0, 1])[:, None, None].expand(-1, 18, 18))
    flips, worst = set(), 0.0
    for images, labels in crops(dataset, maps, 112, 42):
        seen = images[:, :2] / 255
        lowest, highest = -F.adaptive_max_pool2d(-seen, grid), F.adaptive_max_pool2d(seen, grid)
        inside = (lowest > 1 / 36) & (highest < 35 / 36)  # nearer to the edge the map has no two places to go by
        logs = token_targets(labels, 3, grid).tokens.log().transpose(1, 2).unflatten(2, grid)
        said = logs[:, :2] - logs[:, 2:]  # the third class scores 0
        worst = max(worst, float(((F.adaptive_avg_pool2d(seen, grid) - said) * inside).abs().max()))
        flips |= set(labels.flipped.tolist())
        assert inside.float().mean() > 0.5
    assert flips == {False, True} and worst < 0.003  # bytes are 0.004 apart, places of the map 0.056


def test_a_batch_is_what_the_loader_makes_of_the_images(images, maps):
    pixels, labels = next(iter(crops(images, maps, 32, 6)))
    assert isinstance(labels, MapCrops) and pixels.shape == (6, 3, 32, 32)
    assert labels.labels.tolist() == [0, 0, 1, 1, 2, 2] and labels.flipped.dtype == torch.bool
    assert labels.scores.shape == labels.classes.shape == (6, 2, 2, 2)
    for grid in ((2, 2), (1, 3)):  # the input grew, the loader goes on
        targets = token_targets(labels.to(torch.device("cpu")), 3, grid)
        assert targets.image.shape == (6, 3) and targets.tokens.shape == (6, grid[0] * grid[1], 3)
        assert torch.allclose(targets.tokens.sum(2), torch.ones(6, grid[0] * grid[1]))


def test_the_grid_has_the_images_aspect():
    assert token_grid(196, (224, 224)) == (14, 14) and token_grid(24, (64, 96)) == (4, 6)
    assert token_grid(24, (96, 64)) == (6, 4) and token_grid(4 * 6, (72, 96)) == (4, 6)  # a row of patches is cut off
    assert token_grid(7, (64, 64)) in ((1, 7), (7, 1))


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


# ---------------------------------------------------------------- the trainer

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


def test_a_volo_searches_on_label_maps(photos):
    """At the candidates' sizes, by the token loss; a search that is thrown away sees what one that is kept does."""
    recipe = labelled(photos, epochs=4, lr=1e-2, drop_path=0.1, ema=0.5)
    data, losses = load_data(recipe), []
    for recycle in (True, False):
        method = AutoProg(stages=2, search_epochs=1, dimensions=("resolution",), subset=12, recycle=recycle)
        run = Run(recipe, data, method, "autoprog", seed=0)
        epochs = list(run.epochs())
        assert len(epochs) == 4 + (not recycle) and epochs[-1].loss < epochs[0].loss
        (found,) = run.ledger.searches
        losses.append([candidate["loss"] for candidate in found["candidates"]])
        assert run.ledger.stages[-1].resolution == (64, 64)
        assert run.attached.searching is None and run.attached.network.current == run.attached.network.dense
    assert losses[0] == losses[1] and len({*losses[0]}) == 3 and all(map(math.isfinite, losses[0]))


def test_a_subset_larger_than_the_data_is_refused(photos):
    recipe = labelled(photos)
    with pytest.raises(ConfigError, match=r"a subset larger than the data; expected at most 42, found 10000"):
        Run(recipe, load_data(recipe), AutoProg(stages=2, search_epochs=1, subset=10000), "x", seed=0)


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


@pytest.mark.parametrize("resizing", ["bilinear", "low-frequency"])
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


def test_a_comparison_keeps_the_teacher_and_no_paths(photos, tmp_path):
    recipe = labelled(photos, epochs=1)
    settings = {key: getattr(recipe, key) for key in ("model", "data", "token_labels", "image_size", "batch_size")}
    command = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    more = ["--methods", "[Prog(stages=1)]", "--epochs", "1", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert main(["compare", *command, *more]) == 0
    record = json.loads((tmp_path / "out" / "runs.jsonl").read_text().splitlines()[0])
    assert record["recipe"]["token_labels"].startswith("Colours (") and str(photos) not in json.dumps(record)


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

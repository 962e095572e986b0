"""Segmentation: masks follow images, the figure is mIoU, and every method, command and kind of model works on it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from morphogen.cli import main
from morphogen.errors import ConfigError
from morphogen.methods import METHODS, build_method
from morphogen.parts import Prune
from morphogen.run.images import nearest
from morphogen.train.config import Recipe
from morphogen.train.data import Pass
from morphogen.train.images import read_mask
from morphogen.train.loop import Run
from morphogen.train.masks import MaskedCrops
from morphogen.train.models import build_model, build_noted
from morphogen.train.sources import load_data
from morphogen.train.tasks import Segmentation
from test_ranks import run_all

from nightly import often
from processes import free_port, fresh

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)
"""Of the three classes: a pixel's colour tells its class."""

IGNORED = 7
"""The label of the pictures' first column."""


def write_images(root, part, count, size=(48, 64), start=0):
    """Rectangles of one class on another; the first column is of no class."""
    for kind in ("images", "masks"):
        (root / kind / part).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    for i in range(start, start + count):
        mask = np.full(size, i % 3, np.uint8)
        top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        mask[top : top + size[0] // 2, left : left + size[1] // 2] = (i + 1) % 3
        Image.fromarray(COLOURS[mask]).save(root / "images" / part / f"{i}.png")
        mask[:, 0] = IGNORED
        Image.fromarray(mask).save(root / "masks" / part / f"{i}.png")


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets")
    write_images(root, "train", 12)
    write_images(root, "val", 4)
    write_images(root, "val", 1, (40, 72), start=4)
    return root


def recipe(streets, **settings):
    usual = {"image_size": 32, "batch_size": 4, "epochs": 2, "lr": 0.05, "model": "test_segmentation:Net", "workers": 0}
    return Recipe(data=f"segmentation:{streets}", ignored=IGNORED, device="cpu", **{**usual, **settings})


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Net(nn.Module):
    """A residual network with the pooling branch of DeepLab; its output is as large as the image."""

    def __init__(self, num_classes, width=8, kind="plain"):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(width) for _ in range(4)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1, bias=False))
        self.pooled = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(2 * width, num_classes, 1)
        self.kind = kind

    def forward(self, x):
        y = self.stem(x)
        y = self.blocks(y)
        pooled = F.relu(self.pooled(self.pool(y))).expand_as(y)
        maps = self.head(torch.cat([y, pooled], 1))
        if self.kind == "coarse":
            return maps
        maps = F.interpolate(maps, scale_factor=2.0, mode="bilinear")
        return maps if self.kind == "plain" else {"out": maps, "aux": maps.flip(3)}


# --- data --------------------------------------------------------------------------------------------------


def test_classes_are_counted_from_the_masks(streets):
    data = load_data(recipe(streets))
    assert data.num_classes == 3 and data.images == 12 and data.steps == 3
    pixels = sum(np.asarray(Image.open(path))[:, 1:].size for path in (streets / "masks" / "train").iterdir())
    assert int(data.counts.sum()) == pixels == 12 * 48 * 63


def test_a_mask_follows_its_image(streets):
    """Inside a picture every pixel has the colour of its class, whatever scale, crop, flip and resolution."""
    data = load_data(recipe(streets, color_jitter=0.0, base_size=24))
    colours = torch.tensor(COLOURS).float().div(255)
    for size in ((32, 32), (20, 20)):
        for images, masks in data.train_batches(0, 0, size):
            assert images.shape[-2:] == masks.shape[-2:] == size and masks.dtype == torch.uint8
            pixels = images * data.std.view(3, 1, 1) + data.mean.view(3, 1, 1)
            same = torch.stack([(pixels - c.view(1, 3, 1, 1)).abs().amax(1) < 0.02 for c in colours], 1)
            known = masks != 255
            assert set(masks.unique().tolist()) <= {0, 1, 2, 255}
            sure = same.any(1) & known  # not at a border, where colours mix
            assert sure.sum() > 0.5 * known.sum() > 100
            assert (same.int().argmax(1)[sure] == masks[sure]).float().mean() > 0.99


def test_a_crop_shows_the_same_at_every_resolution(streets):
    data = load_data(recipe(streets))
    way = Pass(0, 0, [(32, 32)], [1])
    crops = data._crops(way, {})
    for position in range(6):
        large, mask = crops[position, position, (32, 32)]
        small, small_mask = crops[position, position, (16, 16)]
        down = F.interpolate(large[None].float(), (16, 16), mode="bilinear", antialias=True)[0]
        assert (small.float() - down).abs().mean() < 6
        assert (nearest(mask[None], torch.Size((16, 16)))[0] == small_mask).float().mean() > 0.9


def test_what_is_beyond_an_image_is_ignored(streets):
    pairs = load_data(recipe(streets)).found.train
    classes = torch.arange(256, dtype=torch.uint8)
    crops = MaskedCrops(pairs, classes, None, (400, 400), 0.0, (9, 9, 9), (0,))  # larger than any scale of the image
    image, mask = crops[0, 0, (400, 400)]
    beyond = mask == 255
    assert beyond.float().mean() > 0.5 and bool((image[:, beyond] == 9).float().mean() > 0.98)


def test_whole_images_are_tested_in_batches_of_one_size(streets):
    data = load_data(recipe(streets, base_size=24))
    shapes = [(tuple(images.shape), tuple(masks.shape)) for images, masks in data.test_batches()]
    assert shapes == [((1, 3, 24, 43), (1, 40, 72)), ((4, 3, 24, 32), (4, 48, 64))]
    halved = [tuple(images.shape[-2:]) for images, _ in data.test_batches((16, 16))]
    assert halved == [(12, 22), (12, 16)]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda root: (root / "masks" / "val" / "0.png").unlink(), "images without masks, or masks without images.*0"),
        (
            lambda root: Image.new("RGB", (64, 48)).save(root / "masks" / "val" / "0.png"),
            "one channel, such as a PNG.*mode RGB",
        ),
        (
            lambda root: Image.new("I;16", (64, 48), 300).save(root / "masks" / "val" / "0.png"),
            "from 0 to 255, found 0 to 300",
        ),
        (
            lambda root: Image.new("L", (64, 48)).save(
                (root / "masks" / "val" / "0.png").rename(root / "masks/val/0.jpg")
            ),
            "without loss|JPEG, which changes numbers",
        ),
        (
            lambda root: Image.fromarray(np.full((48, 64), -1, np.int32)).save(
                (root / "masks" / "val" / "0.png").rename(root / "masks" / "val" / "0.tif"), "TIFF"
            ),
            "found -1 to 0",
        ),
        (
            lambda root: Image.new("RGB", (64, 48)).save(root / "images" / "val" / "0.jpg"),
            "two files of one name.*0.jpg and 0.png",
        ),
        (lambda root: Image.new("L", (64, 40)).save(root / "masks" / "val" / "0.png"), "another size than its image"),
        (lambda root: (root / "masks" / "train" / "0.png").write_bytes(b"no"), "cannot read the image.*0.png"),
        (lambda root: [path.unlink() for path in (root / "images" / "val").iterdir()], "masks without images"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, spoil, told):
    write_images(tmp_path, "train", 4)
    write_images(tmp_path, "val", 1)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        load_data(recipe(tmp_path))


def test_masks_of_one_bit_and_of_sixteen_are_read_and_hidden_files_are_not(tmp_path):
    for part in ("train", "val"):
        write_images(tmp_path, part, 4)
        (tmp_path / "images" / part / ".DS_Store").write_bytes(b"no")
        for number, mode in enumerate(("1", "I;16")):
            path = tmp_path / "masks" / part / f"{number}.png"
            Image.fromarray((np.array(Image.open(path)) == 1).astype(np.uint8) * (255 if mode == "1" else 1)).convert(
                mode if mode == "1" else "I"
            ).convert(mode).save(path)
            assert Image.open(path).mode in (mode, "I") and set(read_mask(str(path)).unique().tolist()) == {0, 1}
    assert load_data(recipe(tmp_path)).num_classes == 3


def test_masks_of_one_class_or_none_are_refused(tmp_path):
    for part in ("train", "val"):
        write_images(tmp_path, part, 4)
    for label, told in ((1, "all training images are of one class"), (IGNORED, "the masks ignore every pixel")):
        for path in (tmp_path / "masks").rglob("*.png"):
            Image.new("L", (64, 48), label).save(path)
        with pytest.raises(ConfigError, match=told):
            load_data(recipe(tmp_path))


def test_what_masks_cannot_follow_is_refused(streets):
    for settings in ({"randaugment": 5.0}, {"mixup": 0.2}, {"erasing": 0.1}):
        with pytest.raises(ConfigError, match=f"{next(iter(settings))}: masks cannot follow it"):
            load_data(recipe(streets, **settings))
    with pytest.raises(ConfigError, match=r"base_size: .*segmentation, and the data have no masks"):
        load_data(Recipe(base_size=100))


# --- loss and test figure ----------------------------------------------------------------------------------


def test_the_loss_by_hand():
    task = Segmentation(2)
    maps = torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]])  # two pixels, two classes
    masks = torch.tensor([[[1, 0]]], dtype=torch.uint8)

    def model(images):
        return maps

    def both(images):
        return {"out": maps, "aux": maps}

    images = torch.zeros(1, 3, 1, 2)
    by_hand = (np.log(2) + np.log(1 + np.exp(-2))) / 2
    assert float(task.loss(model, images, masks)) == pytest.approx(by_hand, abs=1e-6)
    ignored = torch.tensor([[[255, 0]]], dtype=torch.uint8)
    assert float(task.loss(model, images, ignored)) == pytest.approx(np.log(1 + np.exp(-2)), abs=1e-6)
    assert float(task.loss(model, images, torch.full_like(masks, 255))) == 0.0
    assert float(task.loss(both, images, masks)) == pytest.approx(1.4 * by_hand, abs=1e-6)
    larger = masks.repeat_interleave(3, 1).repeat_interleave(3, 2)  # masks of full size, images of a third
    assert float(task.loss(model, images, larger)) == pytest.approx(by_hand, abs=1e-6)


def test_the_figure_by_hand():
    """Pixels of all images together: class 0 has 2 of 3, class 1 has 2 of 4, class 2 is in neither and left out."""
    truth = torch.tensor([[[0, 0, 1, 1, 255]], [[1, 255, 255, 255, 255]]], dtype=torch.uint8)
    found = torch.tensor([[[0, 0, 1, 0, 0]], [[1, 0, 0, 0, 0]]])

    def predict(images):
        return F.one_hot(F.pad(found, (0, images.shape[-1] - 5, 0, images.shape[-2] - 1)), 3).movedim(-1, 1).float()

    batches = [(torch.zeros(2, 3, 1, 5), truth)]
    figures = Segmentation(3).evaluate(predict, batches, torch.device("cpu"))
    assert figures == {"mIoU": pytest.approx(100 * (2 / 3 + 2 / 3) / 2)}


# --- models ------------------------------------------------------------------------------------------------


def run_of(streets, method="Dense", **settings):
    settings = recipe(streets, **settings)
    return Run(settings, load_data(settings), build_method(method), method, seed=0)


@pytest.mark.parametrize("kind", ["plain", "coarse", "aux"])
def test_maps_of_any_size_and_dictionaries(streets, kind):
    run = run_of(streets, model=f"test_segmentation:Net(kind='{kind}')", epochs=1)
    (epoch,) = run.epochs()
    assert 0 < epoch.accuracy <= 100 and run.ledger.record()["metric"] == "mIoU"


def test_a_model_that_gives_no_maps_is_refused(streets):
    with pytest.raises(ConfigError, match=r"no maps of the classes.*\(images, 3, height, width\).*shape \(4, 3\)"):
        run_of(streets, model="resnet8(width=4)")
    with pytest.raises(ConfigError, match="gives no maps of the classes"):
        run_of(streets, model="test_segmentation:Net(num_classes=5)")


def test_one_value_for_batch_norm_is_one_clear_message(streets):
    with pytest.raises(ConfigError, match=r"pooled: batch norm has one value of each channel.*2 images.*found 1"):
        run_of(streets, batch_size=1)


SETTINGS = {
    "AutoProg": "stages=2, search_epochs=2, subset=4",
    "NetworkExpansion": "stages=2",
    "DynamicBatch": "step=2, limit=8",
    "OneTime": "threshold=0.2, ratio=0.5",
    "PruneTrain": "interval=1, threshold=0.2, ratio=0.5",
    "GrowThenPrune": "start=0.5, interval=1",
}
"""Of methods whose defaults are for longer runs."""


KEPT = "AutoProg", "DynamicBatch", "GrowThenPrune", "Prog", "ProgressiveUnfreezing"
"""In every run: what grows in each dimension, searches, prunes, changes the batch, freezes."""


@pytest.mark.parametrize(
    "name",
    often(sorted(METHODS.keys() - {"Retrain"}), lambda name: name in KEPT),  # whose schedule is of another run
)
def test_every_method_works(streets, name):
    run = run_of(streets, f"{name}({SETTINGS.get(name, '')})", epochs=4, batch_size=2, warn_drop=100.0)
    epochs = list(run.epochs())
    assert epochs[-1].accuracy > 0 and np.isfinite([epoch.loss for epoch in epochs]).all()
    if run.attached.part(Prune) is None:
        assert run.attached.network.current == run.attached.network.dense


def test_it_learns(streets):
    run = run_of(streets, epochs=12, method="NetworkExpansion(stages=2) + ProgressiveResizing(ratio=0.5, stages=2)")
    epochs = list(run.epochs())
    assert epochs[-1].accuracy > 60 and epochs[-1].accuracy > epochs[0].accuracy
    assert run.attached.history[0][1].resolution < run.attached.history[-1][1].resolution == (32, 32)


# --- commands ----------------------------------------------------------------------------------------------


def arguments(streets, *more):
    own = ["--data", f"segmentation:{streets}", "--ignored", f"{IGNORED}", "--image_size", "32", "--batch_size", "4"]
    return [*own, "--workers", "0", "--device", "cpu", "--lr", "0.05", *more]


DEEPLAB = "smp:DeepLabV3Plus(encoder_name='resnet18', output_stride=16, decoder_channels=8)"


def test_train_draws_a_prediction_and_export_reads_it(streets, tmp_path, capsys):
    folder = tmp_path / "run"
    more = ["--model", DEEPLAB, "--epochs", "2", "--method", "GrowOnce(at=0.5)", "--output", str(folder)]
    assert main(["train", *arguments(streets, *more)]) == 0
    assert "mIoU" in capsys.readouterr().out
    picture = Image.open(folder / "prediction.png")
    assert min(picture.size) > 300 and len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 5
    (record,) = json.loads((folder / "results.json").read_text())
    assert record["metric"] == "mIoU" and record["history"][0]["subnetwork"] != record["history"][1]["subnetwork"]
    assert main(["export", str(folder)]) == 0
    assert (folder / "model.safetensors").exists()
    assert main(["train", *arguments(streets, *more), "--resume", "true"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_file_names_no_encoder_by_an_address():
    for encoder in ("'tu-hf-hub:someone/model'", "'tu-local-dir:/tmp'", "7"):
        with pytest.raises(ConfigError, match="more than numbers"):
            build_noted(f"smp:Unet(encoder_name={encoder})", 3)
    with pytest.raises(ConfigError, match=r"no model 'smp:DeepLab'.*DeepLabV3"):
        build_model("smp:DeepLab", 3)


def test_a_run_goes_on_bit_for_bit(streets):
    method = "NetworkExpansion(stages=2) + ProgressiveResizing(ratio=0.5, stages=2)"
    whole, begun, other = (run_of(streets, method, epochs=3, color_jitter=0.3) for _ in range(3))
    list(whole.epochs())
    epochs = begun.epochs()
    next(epochs)
    with begun._random.active():
        other.load_state_dict(begun.state_dict())
    list(other.epochs())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor), name
    assert [epoch.accuracy for epoch in other.ledger.epochs] == [epoch.accuracy for epoch in whole.ledger.epochs]


def test_compare_reads_speed_off_at_equal_miou(streets, tmp_path, capsys):
    more = [
        "--model",
        "test_segmentation:Net",
        "--epochs",
        "4",
        "--methods",
        "[ProgressiveResizing(stages=2)]",
        "--output",
        str(tmp_path),
    ]
    assert main(["compare", *arguments(streets, *more), "--budgets", "[0.5, 1]"]) == 0
    assert "speedup at equal mIoU" in capsys.readouterr().out
    assert "| at mIoU % |" in (tmp_path / "fronts.md").read_text()
    assert json.loads((tmp_path / "fronts.json").read_text())["metric"] == "mIoU"


def test_a_plan_measures_steps_on_masks(streets, capsys):
    more = ["--method", "ProgressiveResizing(stages=2)", "--seconds", "0.5"]
    assert main(["plan", "test_segmentation:Net", *arguments(streets, *more)]) == 0
    assert "ProgressiveResizing" in capsys.readouterr().out


def test_a_plan_of_segmentation_needs_masks(capsys):
    assert main(["plan", DEEPLAB, "--image_size", "32"]) == 2
    assert "planned on images with masks" in capsys.readouterr().err


@pytest.mark.nightly
def test_two_ranks_test_and_train_together(streets, tmp_path):
    """The figure is of all ranks' images: as one process has it for the same weights."""
    folder = tmp_path / "run"
    more = ["--model", "test_segmentation:Net(width=4)", "--epochs", "2", "--output", str(folder)]
    more += [
        "--method",
        "NetworkExpansion(stages=2) + ProgressiveResizing(ratio=0.5, stages=2)",
        "--lr_schedule",
        "poly",
    ]
    runs = [(free_port(), ["train", *arguments(streets, *more)])]
    torch.multiprocessing.start_processes(run_all, (2, runs, tmp_path), nprocs=2, start_method=fresh())
    (record,) = json.loads((folder / "results.json").read_text())
    alone = run_of(streets, model="test_segmentation:Net(width=4)", epochs=2)
    alone.model.load_state_dict(torch.load(folder / "model.pt", weights_only=True)["state_dict"])
    assert alone._evaluate()[0] == pytest.approx(record["accuracy"], abs=1e-3) and record["accuracy"] > 0

"""Detection: boxes follow images, the figure is mAP, a backbone grows and is pruned, bad files are refused."""

import copy
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import morphogen
from morphogen.cli import main
from morphogen.errors import ConfigError, ExportError
from morphogen.methods import build_method
from morphogen.train.config import Recipe
from morphogen.train.loop import Run
from morphogen.train.models import build_model
from morphogen.train.planning import measured_step
from morphogen.train.sources import load_data
from morphogen.train.tasks import Detection
from morphogen.train.tasks.detection import Boxes

TINY = "retinanet_resnet8(width=4, out_channels=8)"
COLOURS = ((200, 40, 40), (40, 200, 40))
"""Of the two categories."""


def recipe(data="scatter", **settings):
    usual = {
        "model": TINY,
        "image_size": 32,
        "images": 16,
        "test_images": 8,
        "batch_size": 8,
        "epochs": 2,
        "workers": 0,
    }
    usual |= {"optimizer": "adamw", "lr": 1e-3, "channels_last": False, "device": "cpu"}
    return Recipe(data=str(data), **{**usual, **settings})


def write_part(folder, count, change=lambda found: None):
    """Images of 60 x 40 pixels, grey but for one rectangle whose colour tells its category, 7 or 9."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    found = {"images": [], "annotations": [], "categories": [{"id": 9, "name": "green"}, {"id": 7, "name": "red"}]}
    for i in range(count):
        pixels = np.full((40, 60, 3), 120, np.uint8)
        left, top, kind = int(rng.integers(0, 30)), int(rng.integers(0, 20)), i % 2
        pixels[top : top + 16, left : left + 24] = COLOURS[kind]
        Image.fromarray(pixels).save(folder / f"{i}.png")
        found["images"].append({"id": 100 + i, "file_name": f"{i}.png", "height": 40, "width": 60})
        box = {"image_id": 100 + i, "category_id": 7 + 2 * kind, "bbox": [left, top, 24, 16], "iscrowd": 0}
        found["annotations"].append({"id": i, **box})
    change(found)
    (folder / "annotations.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "flags"
    write_part(root / "train", 16)
    write_part(root / "val", 4)
    return root


# --- the figure --------------------------------------------------------------------------------------------------


def objects(boxes, labels, crowd=False):
    shares = torch.tensor(boxes) / 100
    return Boxes(torch.tensor([len(boxes)]), shares, torch.tensor(labels), torch.full((len(boxes),), crowd))


def figures_of(truths, founds):
    """The figures of images of 100 x 100 pixels."""
    said = [{"boxes": torch.tensor(b), "labels": torch.tensor(n), "scores": torch.tensor(s)} for b, n, s in founds]
    batches = [(torch.zeros(len(truths), 3, 100, 100), Boxes.of(truths))]
    return Detection(3).evaluate(lambda images: said, batches, torch.device("cpu"))


def test_map_is_what_it_is_by_hand():
    """One box is found exactly, the other with an IoU of 0.62: at the three thresholds up to 0.6 both count. At the
    seven others precision is 1 up to a recall of 0.5, which are 51 of COCO's 101 places."""
    truths = [objects([[10.0, 10.0, 40.0, 40.0]], [1]), objects([[0.0, 0.0, 50.0, 100.0]], [1])]
    founds = [([[10.0, 10.0, 40.0, 40.0]], [1], [0.9]), ([[0.0, 0.0, 31.0, 100.0]], [1], [0.8])]
    figures = figures_of(truths, founds)
    assert figures == pytest.approx({"mAP": 100 * (3 + 7 * 51 / 101) / 10, "mAP at 0.5": 100}, abs=1e-4)


def test_a_class_counts_as_much_as_another_and_a_crowd_not_at_all():
    truths = [objects([[10.0, 10.0, 40.0, 40.0]], [1]), objects([[0.0, 0.0, 50.0, 50.0]], [2])]
    founds = [([[10.0, 10.0, 40.0, 40.0]], [1], [0.9]), ([[0.0, 0.0, 50.0, 50.0]], [1], [0.95])]
    # Class 1: the surer of two is wrong, so precision is 1/2 everywhere. Class 2: never found.
    assert figures_of(truths, founds)["mAP"] == pytest.approx(25, abs=1e-4)
    truths[1] = objects([[0.0, 0.0, 50.0, 50.0]], [1], crowd=True)
    assert figures_of(truths, founds)["mAP"] == pytest.approx(100, abs=1e-4)


# --- data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (48, 48)])
def test_boxes_follow_their_images(flags, size):
    """Inside a box all has the colour of its category, and around it nothing, flipped or not, at every size."""
    data, flips = load_data(recipe(f"detection:{flags}", image_size=64)), set()
    assert data.classes == ["background", "red", "green"] and data.counts.tolist() == [16, 8, 8]
    for epoch in range(2):
        for images, targets in data.train_batches(0, epoch, size):
            assert images.shape[-2:] == size and float(images.min()) >= 0 and float(images.max()) <= 1
            truth = targets.in_pixels(*size)
            for image, each in zip(images, truth, strict=True):
                colour = torch.tensor(COLOURS[int(each["labels"]) - 1]).view(3, 1, 1) / 255
                like = (image - colour).abs().amax(0) < 0.1
                left, top, right, bottom = each["boxes"][0].round().int().tolist()
                assert like[top + 1 : bottom - 1, left + 1 : right - 1].all()
                inside = torch.zeros_like(like)
                inside[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = True
                assert not (like & ~inside).any()
            flips |= {tuple(box.tolist()) for box in targets.boxes}
    assert len(flips) > 16  # some images came both ways


def test_one_folder_gives_its_every_fifth_image_to_the_test(tmp_path):
    write_part(tmp_path / "all", 10)
    data = load_data(recipe(f"detection:{tmp_path / 'all'}", images=None, test_images=None))
    assert [len(data.train), len(data.test)] == [8, 2]


BAD = {
    "outside": (lambda f: f["annotations"][3].update(bbox=[50, 5, 24, 16]), r"3\.png: .*\[50, 5, 24, 16\].*not inside"),
    "no area": (lambda f: f["annotations"][2].update(bbox=[5, 5, 0, 16]), r"2\.png: .*has no area"),
    "numbers": (lambda f: f["annotations"][1].update(bbox=[5, "5", 9, 9]), r"1\.png: .*number from"),
    "three": (lambda f: f["annotations"][1].update(bbox=[5, 5, 9]), r"1\.png: .*unpack"),
    "elsewhere": (lambda f: f["images"][0].update(file_name="../val/0.png"), r"0\.png: no such image file"),
    "absolute": (lambda f: f["images"][0].update(file_name="/etc/passwd"), r"no such image file"),
    "long": (lambda f: f["images"][0].update(file_name="a" * 5000), r"aaa: .*File name too long"),
    "huge": (lambda f: f["images"][0].update(width=10**9), r"0\.png: 1000000000 where a whole number"),
    "category": (lambda f: f["annotations"][0].update(category_id=8), r"category 8, of which one is not there"),
    "unhashable": (lambda f: f["annotations"][0].update(image_id=[1]), r"no annotations as COCO has them"),
    "twice": (lambda f: f["images"].append(f["images"][0]), r"a number is there twice"),
    "no key": (lambda f: f.pop("categories"), r"no 'categories'"),
    "no boxes": (lambda f: f["annotations"].clear(), r"no training image has a box"),
}


@pytest.mark.parametrize("change, words", BAD.values(), ids=BAD)
def test_bad_annotations_are_one_message(tmp_path, change, words):
    write_part(tmp_path / "set" / "train", 4, change)
    write_part(tmp_path / "set" / "test", 4)
    with pytest.raises(ConfigError, match=words) as refused:
        load_data(recipe(f"detection:{tmp_path / 'set'}"))
    assert "\n" not in str(refused.value).strip()


def test_what_is_not_there_or_of_another_size_is_one_message(tmp_path):
    with pytest.raises(ConfigError, match=r"no annotations .*FOLDER/train"):
        load_data(recipe(f"detection:{tmp_path}"))
    write_part(tmp_path / "set" / "train", 8, lambda f: [each.update(width=90) for each in f["images"]])
    write_part(tmp_path / "set" / "test", 4)
    data = load_data(recipe(f"detection:{tmp_path / 'set'}"))
    with pytest.raises(ConfigError, match=r"\.png: .*expected 90 x 40 pixels, found 60 x 40"):
        next(data.train_batches(0, 0))


def test_settings_that_cannot_be_are_one_message():
    for key, value in (("randaugment", 5.0), ("mixup", 0.2), ("compile", True), ("label_smoothing", 0.1)):
        with pytest.raises(ConfigError, match=f"^{key}: "):
            load_data(recipe(**{key: value}))
    data = load_data(recipe())
    for model, words in (("resnet8", "no detector"), ("test_detection:Silent", "returns no losses")):
        with pytest.raises(ConfigError, match=words):
            [*Run(recipe(model=model), data, build_method("Dense"), "Dense", 0).epochs()]
    with pytest.raises(ConfigError, match="masks or keypoints"):
        Detection.prepare(build_model("torchvision:maskrcnn_resnet50_fpn", 2))
    with pytest.raises(ConfigError, match="only the backbone"):
        measured_step(recipe(), data)


class Silent(nn.Module):
    """Called like a detector, without a loss."""

    def __init__(self, num_classes):
        super().__init__()
        whole = build_model(TINY, num_classes)
        self.backbone, self.transform = whole.backbone, whole.transform

    def forward(self, images, targets=None):
        return self.backbone(self.transform(images)[0].tensors)


# --- training ----------------------------------------------------------------------------------------------------


def trained(run):
    for _ in run.epochs():
        pass
    return {name: tensor.clone() for name, tensor in run.result.state_dict().items()}


def test_a_run_resumes_bit_for_bit_with_its_heads_and_their_average():
    data, settings = load_data(recipe()), recipe(epochs=3, ema=0.9)

    def made():
        method = build_method("NetworkExpansion(width=0.5, stages=2)")
        return Run(settings, data, method, "NetworkExpansion(width=0.5, stages=2)", 0)

    whole, first, second = made(), made(), made()
    expected = trained(whole)
    next(first.epochs())
    file = io.BytesIO()
    with first._random.active():  # as where a checkpoint is saved
        torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    found = trained(second)
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    assert [epoch.loss for epoch in whole.ledger.epochs] == [epoch.loss for epoch in second.ledger.epochs]
    heads = {name for name in found if not name.startswith("backbone.")}
    assert heads and any(not torch.equal(found[name], made().result.state_dict()[name]) for name in heads)


def test_the_backbone_grows_inside_the_detector_and_the_heads_stay():
    run = Run(recipe(epochs=2), load_data(recipe()), build_method("NetworkExpansion(width=0.5, stages=2)"), "N", 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in run.model.state_dict().items()}
    dense = {name: tuple(tensor.shape) for name, tensor in build_model(TINY, 11).state_dict().items()}
    narrow = {name for name in dense if shapes[name] != dense[name]}
    assert shapes["backbone.conv1.weight"] == (2, 3, 3, 3) and dense["backbone.conv1.weight"] == (4, 3, 3, 3)
    assert narrow and all(name.startswith("backbone.") for name in narrow)
    after = trained(run)
    assert {name: tuple(tensor.shape) for name, tensor in after.items()} == dense
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in run.model.parameters()}
    assert len(run.ledger.stages) == 2 and run.ledger.morphs[0].correlations is not None


def test_heads_count_in_the_flops_by_hand():
    """At 32 x 32 pixels the two maps have 8 x 8 and 4 x 4 places. At each the heads have two towers of four
    convolutions of 8 channels, 9 anchors of 11 classes and 9 of 4 sides; backward costs twice as much."""
    model = build_model(TINY, 11)
    Detection.prepare(model)
    forward = (64 + 16) * 2 * 9 * 8 * (2 * 4 * 8 + 9 * 11 + 9 * 4)
    before = torch.random.get_rng_state()
    beside = Detection(11).beside(model, (32, 32))
    assert (beside.forward, beside.training) == (forward, 3 * forward)
    assert beside.parameters == sum(p.numel() for p in model.head.parameters())
    assert torch.equal(before, torch.random.get_rng_state())


def test_images_and_boxes_change_their_resolution_together():
    run = Run(
        recipe(image_size=64),
        load_data(recipe(image_size=64)),
        build_method("ProgressiveResizing(ratio=0.5, stages=2)"),
        "P",
        0,
    )
    seen = []
    hook = run.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    trained(run)
    hook.remove()
    assert seen[0] == (32, 32) and seen[-1] == (64, 64)


def test_pieces_of_a_batch_have_their_own_boxes():
    targets = Boxes.of([objects([[float(i), 0.0, 50.0, 50.0]] * i, [1 + i] * i) for i in range(1, 6)])
    pieces = Detection(9).pieces(targets, 2)
    assert [piece.counts.tolist() for piece in pieces] == [[1, 2, 3], [4, 5]]
    assert pieces[1].labels.tolist() == [5] * 4 + [6] * 5


def test_the_commands(flags, tmp_path, capsys):
    """Train, keep the best, predict, export, load; ONNX is refused, and so is a picture of what has no boxes."""
    output, image = tmp_path / "run", str(flags / "val" / "0.png")
    shared = [
        "--data",
        f"detection:{flags}",
        "--model",
        TINY,
        "--image_size",
        "32",
        "--batch_size",
        "8",
        "--device",
        "cpu",
    ]
    shared += ["--epochs", "1", "--workers", "0", "--channels_last", "false"]
    assert main(["train", *shared, "--keep_best", "--method", "PruneTrain(interval=1)", "--output", str(output)]) == 0
    assert "mAP" in capsys.readouterr().out and {"best.pt", "prediction.png"} <= {p.name for p in output.iterdir()}
    picture = tmp_path / "found.png"
    assert main(["predict", str(output), image, "--format", "json", "--picture", str(picture)]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["image"] == image and len(found["objects"]) <= 5 and picture.stat().st_size > 1000
    for each in found["objects"]:
        left, top, right, bottom = each["box"]
        assert each["name"] in ("red", "green") and 0 <= left <= right <= 60 and 0 <= top <= bottom <= 40
    assert main(["export", str(output), "--best", "--output", str(tmp_path / "out")]) == 0
    assert main(["export", str(output), "--onnx"]) == 2
    assert "RetinaNet goes on depends on what it has found" in capsys.readouterr().err
    detector = build_model(TINY, 3)
    assert morphogen.load(detector, tmp_path / "out" / "model.safetensors") is detector
    kept = torch.load(output / "best.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[name], tensor) for name, tensor in detector.state_dict().items())


def test_a_detector_of_ones_own_loop_is_saved_whole(tmp_path):
    detector = build_model(TINY, 3)
    net = morphogen.trace(detector.backbone, torch.zeros(2, 3, 32, 32))
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.save(net, tmp_path / "half.safetensors", inside=detector)
    again = morphogen.load(build_model(TINY, 3), tmp_path / "half.safetensors")
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        one, other = (model.eval()(images)[0] for model in (detector, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ExportError, match=r"head.*beside the traced part"):
        morphogen.load(build_model(TINY, 5), tmp_path / "half.safetensors")
    with pytest.raises(ExportError, match="no part of it"):
        morphogen.save(net, tmp_path / "other.safetensors", inside=copy.deepcopy(detector))


def test_methods_are_compared(tmp_path, capsys):
    shared = ["--data", "scatter", "--model", TINY, "--image_size", "32", "--images", "16", "--test_images", "4"]
    shared += [
        "--batch_size",
        "8",
        "--epochs",
        "2",
        "--device",
        "cpu",
        "--channels_last",
        "false",
        "--optimizer",
        "adamw",
    ]
    methods = ["GrowOnce(at=0.5)", "PruneTrain(interval=1)"]
    assert main(["compare", *shared, "--methods", json.dumps(methods), "--output", str(tmp_path)]) == 0
    records = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert {"Dense", *methods} <= {record["method"] for record in records}
    assert all(record["metric"] == "mAP" for record in records) and "mAP" in capsys.readouterr().out

"""How a network is trained: schedule, averages, decay, the loop."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from morphogen.errors import ConfigError
from morphogen.methods import METHODS, Dense
from morphogen.methods.method import Method
from morphogen.parts import Grow, Regularise, Resize
from morphogen.schedule.learning_rate import shape_named, share_of_peak
from morphogen.schedule.stages import Regularisation, Stage
from morphogen.train.augment import seeded
from morphogen.train.data import Data, loader_throughput
from morphogen.train.images import read_random_crop
from morphogen.train.loop import Run
from morphogen.train.models import build_model
from morphogen.train.objective import build_optimizer
from morphogen.train.saved import save_network
from morphogen.train.sources import load_data

from batches import CPU, EVERYTHING, epoch_of, recipe, streamed

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
    shares = [share_of_peak(shape_named("cosine"), step, 10, 4) for step in range(11)]
    assert shares == pytest.approx(warmup + cosine, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "values"),  # at 0, 1/4, 1/2, 3/4 and all of the way behind the warm-up
    [
        ("cosine", [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0]),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("wsd(decay=0.5)", [1, 1, 1, 0.5, 0]),
        ("wsd", [1, 1, 1, 0.25 / 0.35, 0]),
        ("poly(power=2)", [1, 0.5625, 0.25, 0.0625, 0]),
        ("milestones", [1, 1, 0.1, 0.01, 0.01]),
        ("milestones(at=(0.75,), factor=0.5)", [1, 1, 1, 0.5, 0.5]),
    ],
)
def test_the_shapes_of_the_learning_rate_by_hand(shape, values):
    shares = [share_of_peak(shape_named(shape), 2 + step, 10, 2) for step in (0, 2, 4, 6, 8)]
    assert shares == pytest.approx(values, abs=1e-12)
    assert share_of_peak(shape_named(shape), 1, 10, 2) == pytest.approx(0.5005)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("cosin", "Did you mean cosine"),
        ("wsd(decay=0)", "0 < decay <= 1"),
        ("wsd(decya=0.3)", "no setting 'decya'"),
        ("poly(power=-1)", "above 0"),
        ("milestones(at=(0.5, 1.5))", "between 0 and 1"),
        ("milestones(at=0.5)", "tuple such as"),
    ],
)
def test_a_wrong_shape_is_refused_at_once(shape, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        recipe(lr_schedule=shape)


@pytest.mark.parametrize(("steps", "warmup"), [(None, 4), (5, 2), (1, 0)])  # two fifths, as of the whole run
def test_the_learning_rate_is_that_of_pytorchs_schedulers(steps, warmup, monkeypatch):
    settings = recipe(epochs=5, warmup_epochs=2, lr=0.2, images=128)
    run = Run(settings, load_data(settings), Dense(), "x", 0, steps)
    found = []
    end_step = run.attached.end_step
    monkeypatch.setattr(
        run.attached, "end_step", lambda: (found.append(run.optimizer.param_groups[0]["lr"]), end_step())
    )
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
    assert run._evaluate()[0] == pytest.approx(accuracy(run.result)) != pytest.approx(accuracy(run.model))
    save_network(run, tmp_path / "model.pt")
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

    def parts(self):
        return [
            Grow(self.schedule, operator=self.operator),
            Resize(self.resizing),
            Regularise(self.regularisation),
        ]

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
    end_step = run.attached.end_step
    monkeypatch.setattr(run.attached, "end_step", lambda: (steps.append(1), end_step()))
    list(run.epochs())
    assert asked == [
        (4, 0, [(8, 8)] * data.steps, "low-frequency", Regularisation(randaugment=0.5, erasing=0.0), 64, 0),
        (4, 1, [(16, 16)] * data.steps, "low-frequency", Regularisation(randaugment=1.0, erasing=0.0), 64, 0),
    ]
    assert tested == [(8, 8), (16, 16), (16, 16)] and len(steps) == 2 * data.steps
    assert [stage.resolution for stage in run.ledger.stages] == [(8, 8), (16, 16)]


def test_a_run_with_everything_on_learns_and_repeats():
    settings = recipe(**EVERYTHING | {"epochs": 4, "randaugment": 1, "images": None})
    data = load_data(settings)
    runs = [Run(settings, data, METHODS["NetworkExpansion"](stages=2), "x", seed=1) for _ in range(2)]
    epochs = [list(run.epochs()) for run in runs]
    assert [epoch.loss for epoch in epochs[0]] == [epoch.loss for epoch in epochs[1]]
    assert epochs[0][-1].accuracy > 25  # ten classes
    one, other = (run.result.state_dict() for run in runs)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_loader_throughput_counts_images_by_the_clock(photos, monkeypatch):
    clock = [0.0]

    class Slow:
        device = CPU

        def train_batches(self, seed, epoch, size, resizing):
            for _ in range(2):
                clock[0] += 0.02
                yield torch.zeros(5, 3, *size), torch.zeros(5)

    with monkeypatch.context() as planted:
        planted.setattr("morphogen.train.data.now", lambda device: clock[0])
        assert loader_throughput(Slow(), (4, 4), 10) == pytest.approx(250)  # 5 images in 20 ms
    assert loader_throughput(streamed(photos), (16, 16), 4) > 0


# --- recipes and bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mixup": 0.8, "batch_size": 63}, "an even number, found 63"),
        ({"cutmix": 1.0, "batch_size": 63}, "an even number"),
        ({"randaugment": 11}, "randaugment out of range; expected 0 to 10"),
        ({"erasing": 1.5}, "erasing out of range; expected 0 to 1"),
        ({"mixup": 0.8, "token_labels": Path("maps")}, "token_labels: label maps cannot follow mixup.*found mixup 0.8"),
        ({"cutmix": 1.0, "token_labels": Path("maps")}, "token_labels: label maps cannot follow mixup and cutmix"),
        ({"mixup": -1.0}, "mixup out of range; expected 0 to 1000"),
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

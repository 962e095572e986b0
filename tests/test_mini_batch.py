"""The dynamic mini-batch: its sizes, its learning rate, its data, its schedule and its books."""

import json
import math
from functools import cache
from itertools import product

import pytest
import torch
from torch import nn

import morphogen
from morphogen.cli import main
from morphogen.cost.flops import cost
from morphogen.cost.memory import StepMemory
from morphogen.errors import ConfigError
from morphogen.methods import build_method
from morphogen.parts import Average, Batch, Search, batching
from morphogen.parts.batching import Batching
from morphogen.schedule.mini_batch import MiniBatch, step_sizes
from morphogen.train.config import Recipe
from morphogen.train.loop import Run
from morphogen.train.sources import load_data
from test_memory import Two, step_bytes

from nets import Tower, image
from nightly import often
from planted import Planted, plant_sparse, plant_times

FIRST = 4


def recipe(**settings):
    return Recipe(
        **{"model": "resnet8(width=8)", "epochs": 4, "batch_size": 64, "images": 500, "image_size": 8} | settings
    )


@cache
def memory_of_two(optimizer):
    """The memory of `Two`, which is only read, so that each step is followed once; and its optimizer."""
    model = Two()
    made = optimizer(model.parameters(), lr=0.1)
    return StepMemory(morphogen.trace(model, image(2, 4)), [made]), made


def two(policy, optimizer=torch.optim.SGD, steps_per_epoch=None):
    """The batches of `Two`."""
    memory, made = memory_of_two(optimizer)
    return memory.network, Batching(policy, memory, [made], FIRST, steps_per_epoch)


# --- sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "budget", "channels"),
    often(
        product((1, 2, 5), (None, 20_000, 100_000), (2, 4, 6, 8)),
        lambda case: case[0] == 2 or case[2] == 6,
    ),
)
def test_a_batch_is_the_largest_that_fits(step, budget, channels):
    net, batches = two(MiniBatch(budget, step))
    batches.follow(net.dense)
    assert batches.size == FIRST or budget is not None
    batches.follow(net.subnetwork(width=channels / 8))
    room = budget or step_bytes(FIRST, 8, 0)
    fit = [n for n in range(FIRST, 1000, step) if step_bytes(n, channels, 0) <= room]
    assert batches.size == max(fit) and max(fit) + step < 1000


def test_a_batch_has_its_limits():
    for limit, size in ((None, 10), (9, 8), (6, 6), (4, 4)):
        net, batches = two(MiniBatch(None, 2, limit))
        batches.follow(net.subnetwork(width=0.25))
        assert batches.size == size
    for steps, size in ((1, 4), (2, 8), (9, 10)):  # an epoch of so many steps of 4 has no more images
        net, batches = two(MiniBatch(None, 2), steps_per_epoch=steps)
        batches.follow(net.subnetwork(width=0.25))
        assert batches.size == size and batches.steps_of(net.dense, steps) == steps
        # 4; 8; three of 10 and one of 6
        assert batches.steps_of(net.subnetwork(width=0.25), steps) == {1: 1, 2: 1, 9: 4}[steps]


def test_a_batch_fits_where_the_peak_is_flat_at_first():
    """While the update of the weights is the most, more images need hardly more memory; then much more."""

    class Heavy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 64, 3, padding=1), nn.Linear(64 * 64, 256)

        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).flatten(1))

    model = Heavy()
    made = torch.optim.AdamW(model.parameters())
    net = morphogen.trace(model, image(2, 8))
    memory = StepMemory(net, [made])
    flat, more, steep = (memory.bytes(net.dense, images) for images in (8, 16, 512))
    assert more - flat < 0.01 * flat and steep > 1.3 * flat
    for budget in (int(1.1 * flat), int(1.3 * flat), None):
        for steps_per_epoch in (None, 10_000):
            batches = Batching(MiniBatch(budget, 8), memory, [made], 8, steps_per_epoch)
            size = batches.size_of(net.dense)
            assert size == 8 or budget is not None
            assert memory.bytes(net.dense, size) <= (budget or flat) < memory.bytes(net.dense, size + 8)


def test_a_search_for_a_batch_looks_at_few():
    looked = []

    def fits(images):
        looked.append(images)
        return images <= 560

    assert MiniBatch().size(128, None, fits) == 544 and len(looked) <= 7
    assert MiniBatch(step=200).size(128, None, fits) == 528
    assert MiniBatch(limit=300).size(128, None, fits) == 288 and MiniBatch().size(128, 160, fits) == 160
    assert MiniBatch().size(128, None, lambda images: False) == 128


def test_the_steps_of_an_epoch():
    assert step_sizes(2944, 128, 128) == [128] * 23
    assert step_sizes(2944, 256, 128) == [256] * 11 + [128]
    assert step_sizes(2944, 192, 128) == [192] * 15 + [64]  # half the first batch
    assert step_sizes(2944, 160, 128) == [160] * 18 + [64]
    assert step_sizes(2944, 320, 128) == [320] * 9 + [64]
    assert step_sizes(2944, 288, 128) == [288] * 10 + [64]
    assert step_sizes(2944, 224, 128) == [224] * 13  # 32 are left out
    assert step_sizes(128, 200, 128) == [128]
    for first in range(1, 9):
        for steps in range(1, 9):
            for size in range(first, 80):
                sizes = step_sizes(steps * first, size, first)
                assert 0 <= steps * first - sum(sizes) < first / 2 and set(sizes[:-1]) <= {size}
                assert len(sizes) >= 1 and first / 2 <= sizes[-1] <= size


@pytest.fixture
def there(monkeypatch):
    """The allocator's figures, planted."""
    there = {"now": 0, "peak": 0}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: there.update(peak=there["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: there["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: there["peak"])
    return there


def take_steps(batches, there, peak, steps=1):
    """Steps of which each needs so many bytes."""
    for _ in range(steps):
        batches.begin_step()
        there["peak"] = max(there["peak"], peak)
        batches.end_step()


def test_a_gpu_that_needs_more_than_was_modelled_gets_smaller_batches(there):
    """There are 1000 bytes of somebody else's."""
    budget = 4 * step_bytes(FIRST, 8, 0)
    sizes = []
    for policy in (MiniBatch(budget, 1), MiniBatch(None, 1)):
        net, batches = two(policy)
        batches.follow(net.dense)
        batches._gauge = batching.Gauge()
        images = batches.size
        there["now"] = 1000 + 4 * 40
        batches.begin_epoch(net.model.parameters())  # 40 weights
        there["peak"] = 10**9  # an evaluation before the first step
        for taken in range(5):
            assert batches.factor == (1.0 if taken < batching.SETTLED else 2.0)
            take_steps(batches, there, 1000 + 2 * step_bytes(images, 8, 0))
        batches.follow(net.subnetwork(width=0.5))
        sizes.append(batches.size)
    largest = [max(n for n in range(99) if step_bytes(n, 4, 0) <= room) for room in (budget / 2, budget / 4)]
    assert sizes == largest  # without a budget all are off alike


def test_a_batch_that_does_not_fit_by_measure_shrinks_in_the_next_epoch(there):
    budget = 4 * step_bytes(FIRST, 8, 0)
    net, batches = two(MiniBatch(budget, 1))
    sizes = []
    for factor in (0.9, 2.0, 1.9, 1.0):
        batches.follow(net.dense)
        batches._gauge = batching.Gauge()
        batches.begin_epoch([])
        sizes.append(batches.size)
        take_steps(batches, there, int(factor * step_bytes(batches.size, 8, 0)), batching.SETTLED)
        assert batches.factor == pytest.approx(factor, rel=1e-3)
    largest = [max(n for n in range(99) if step_bytes(n, 8, 0) <= room) for room in (budget, budget / 2)]
    assert sizes == [largest[0]] * 2 + [largest[1]] * 2  # smaller when it must be, not larger again
    net, batches = two(MiniBatch(None, 1))
    batches.follow(net.dense)
    batches.factor = 2.0
    batches.follow(net.dense)
    assert batches.size == FIRST


# --- the learning rate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "scaling", "expected"),
    [
        (torch.optim.SGD, "auto", 3.0),
        (torch.optim.SGD, "sqrt", math.sqrt(3)),
        (torch.optim.AdamW, "auto", math.sqrt(3)),
        (torch.optim.AdamW, "linear", 3.0),
        (torch.optim.RMSprop, "auto", math.sqrt(3)),
        (torch.optim.Adagrad, "auto", math.sqrt(3)),
        (torch.optim.Adadelta, "auto", math.sqrt(3)),
    ],
)
def test_the_learning_rate_follows_the_batch(optimizer, scaling, expected):
    net, batches = two(MiniBatch(10**6, 8, 12, scaling), optimizer)
    batches.follow(net.subnetwork(width=0.5))
    assert batches.size == 12 and batches.lr_scale == pytest.approx(expected)


# --- in a loop --------------------------------------------------------------------------------------------


def attach(method, epochs=8, model=None, **settings):
    model = model or Tower(rate=0.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    settings = {"batch_size": FIRST, "start_epoch": 0} | settings
    return morphogen.attach(model, optimizer, method, example=image(), epochs=epochs, **settings)


def test_growth_begins_with_large_batches_and_ends_with_the_first():
    run = attach(build_method("NetworkExpansion(width=0.25, stages=4) + DynamicBatch(step=1)"))
    seen = []
    for epoch in range(8):
        run.begin_epoch(epoch)
        seen.append(run.batch_size)
        assert run.lr_scale == run.batch_size / FIRST
    assert seen[::2] == seen[1::2] == sorted(seen[::2], reverse=True) and seen[0] > 2 * FIRST and seen[-1] == FIRST
    plain = attach(morphogen.Dense())
    assert plain.batch_size == FIRST and plain.lr_scale == 1.0


def test_pruning_raises_the_batch_where_it_reconfigures():
    """Wherever channels have gone, the batch is the largest that needs no more than the dense network did."""
    model = Tower(rate=0.0)
    run = attach(build_method("PruneTrain(interval=2) + DynamicBatch(step=1)"), 6, model)
    memory, net, sizes = run.part(Batch).batching.memory, run.network, []
    for epoch in range(6):
        plant_sparse(net, net.subnetwork(alive={"conv1": [u for u in net.current.channels["conv1"] if u > epoch]}))
        receipt = run.begin_epoch(epoch)
        assert (receipt is not None) == (epoch in (2, 4))
        sizes.append(run.batch_size)
        room = memory.bytes(net.dense, FIRST)
        assert memory.bytes(net.current, run.batch_size) <= room < memory.bytes(net.current, run.batch_size + 1)
    assert sizes[0::2] == sizes[1::2] and FIRST == sizes[0] < sizes[2] < sizes[4]


def test_a_momentum_network_reaches_back_over_the_steps_that_are_taken():
    for text in ("Prog(stages=2)", "Prog(stages=2) + DynamicBatch(step=1)"):
        run = attach(build_method(text), steps_per_epoch=50)
        steps = len(step_sizes(50 * FIRST, run.batch_size, FIRST))
        assert run.part(Average).network.decay == pytest.approx(1 - 1 / (0.1 * 4 * steps))
    assert run.batch_size > FIRST


def test_a_search_has_the_batch_of_its_supernet(monkeypatch):
    class Searching(morphogen.AutoProg):
        def parts(self):
            return [*super().parts(), *morphogen.DynamicBatch(step=1).parts()]

    monkeypatch.setattr(Batch, "moves", False)  # which lets it into a run with a search

    plant_times(monkeypatch)
    model = Tower(rate=0.0)
    probe = Planted(model, [(12, 2, 4)]).probe
    run = attach(
        Searching(stages=2, search_epochs=1, scoring="literal"), 4, model, steps_per_epoch=9, probe=probe, hooks=False
    )
    search = run.part(Search)
    assert search.searching is not None and run.batch_size == FIRST  # the supernet is the dense network
    for _ in range(9):
        run.begin_step(image())
        run.end_step()
    run.begin_epoch(1)
    assert search.searching is None and run.batch_size > FIRST
    run.begin_epoch(2)
    assert run.network.current == run.network.dense and run.batch_size == FIRST


# --- data, schedule and books -----------------------------------------------------------------------------


def test_an_epoch_is_the_same_images_in_the_same_order_at_every_batch_size():
    data = load_data(recipe())
    plain = [torch.cat([labels for _, labels in data.train_batches(3, 1, batch_size=n)]) for n in (None, 64, 96, 500)]
    assert [len(labels) for labels in plain] == [448] * 4  # 7 steps of 64; 4 of 96 and one of 64; one of 448
    assert all(torch.equal(labels, plain[0]) for labels in plain)
    assert [len(labels) for _, labels in data.train_batches(0, 0, batch_size=210)] == [210] * 2  # 28 are left out
    mixed = load_data(recipe(mixup=0.8))
    assert [len(images) for images, _ in mixed.train_batches(0, 0, batch_size=96)] == [96] * 4 + [64]
    with pytest.raises(ConfigError, match="not one size for each step; expected 5, found 7"):
        data.train_batches(0, 0, [(8, 8)] * 7, batch_size=96)


def test_streamed_images_come_in_the_same_order_too(tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        for label in range(9):
            (tmp_path / part / str(label)).mkdir(parents=True)
            Image.new("RGB", (90, 80)).save(tmp_path / part / str(label) / "0.png")
    data = load_data(recipe(data=str(tmp_path), image_size=32, batch_size=2, images=None, workers=0))
    two, three, six = ([labels for _, labels in data.train_batches(0, 0, batch_size=n)] for n in (2, 3, 6))
    assert [[len(labels) for labels in epoch] for epoch in (two, three, six)] == [[2] * 4, [3, 3, 2], [6, 2]]
    assert torch.equal(torch.cat(two), torch.cat(three)) and torch.equal(torch.cat(two), torch.cat(six))


def test_a_run_keeps_its_schedule_and_its_books(monkeypatch):
    settings = recipe(lr=0.1, lr_schedule="cosine", warmup_epochs=1, optimizer="adamw")
    data = load_data(settings)
    run = Run(settings, data, build_method("NetworkExpansion(stages=2) + DynamicBatch(limit=130)"), "x", seed=0)
    rates = []
    end_step = run.attached.end_step
    monkeypatch.setattr(
        run.attached, "end_step", lambda: (rates.append(run.optimizer.param_groups[0]["lr"]), end_step())
    )
    assert len(list(run.epochs())) == 4
    small, large = run.ledger.stages
    assert (small.batch_size, large.batch_size) == (128, 64)
    assert (small.steps, large.steps) == (2 * 4, 2 * 7)  # three of 128 and one of 64; seven of 64
    assert small.images == large.images == 2 * 448
    assert run.ledger.samples == run.ledger.record()["samples"] == 4 * 448
    half = run.attached.history[0][1]
    assert small.training_flops == cost(run.attached.network, half, 128).training
    assert large.training_flops == cost(run.attached.network, run.attached.network.dense, 64).training
    images = {size: cost(run.attached.network, half, size).training for size in (128, 64)}
    assert run.ledger.flops == 6 * images[128] + 2 * images[64] + large.training_flops * 14
    # At the beginning of each epoch the rate is that of its share of the run, times the square root of the batch's.
    cosine = [0.1 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
    begins = [rates[i] for i in (0, 4, 8, 15)]
    assert begins == pytest.approx([1e-4 * math.sqrt(2), cosine[0] * math.sqrt(2), cosine[1], cosine[2]])
    for step, scale in ((1, math.sqrt(2)), (3, 1)):  # the last is as large as the first batch
        share = 128 * step / 448
        assert rates[4 + step] == pytest.approx(0.1 * scale * (1 + math.cos(math.pi * share / 3)) / 2)


def test_a_shortened_run_is_as_long_in_images():
    settings = recipe(images=512)
    data = load_data(settings)
    for steps, taken in ((8, [4]), (12, [4, 2]), (13, [4, 3])):  # 8 steps of 64 an epoch, or 4 of 128
        run = Run(settings, data, morphogen.DynamicBatch(budget=1, limit=128), "x", seed=0, steps=steps)
        list(run.epochs())
        assert [stage.steps for stage in run.ledger.stages] == [sum(taken)]
        assert len(run.ledger.epochs) == len(taken)


def test_a_comparison_runs_and_keeps_its_books(tmp_path):
    label = "NetworkExpansion(stages=2) + DynamicBatch(limit=96)"
    small = "--data digits --model resnet8(width=8) --epochs 2 --batch_size 64 --images 256 --image_size 8".split()
    assert main(["compare", *small, "--methods", f'["{label}"]', "--output", str(tmp_path)]) == 0
    records = {record["method"]: record for record in json.loads((tmp_path / "results.json").read_text())}
    dense, method = records["Dense"], records[label]
    assert [stage["batch_size"] for stage in method["stages"]] == [96, 64]
    assert [stage["steps"] for stage in method["stages"]] == [3, 4]  # 96, 96 and 64; four of 64
    assert method["samples"] == dense["samples"] == 8 * 64
    assert method["flops"] == sum(stage["training_flops"] * 256 // stage["batch_size"] for stage in method["stages"])
    assert (tmp_path / "memory.png").stat().st_size > 5000 and not (tmp_path / "flops.png").exists()
    before = (tmp_path / "runs.jsonl").read_text()
    assert main(["compare", *small, "--methods", f'["{label}"]', "--output", str(tmp_path)]) == 0
    assert (tmp_path / "runs.jsonl").read_text() == before


# --- bad input --------------------------------------------------------------------------------------------


def test_a_budget_below_the_first_batch_is_refused_with_both():
    need = step_bytes(FIRST, 8, 0)
    two(MiniBatch(need))
    with pytest.raises(ConfigError, match=rf"a memory budget below the first batch; expected at least {need:,} bytes"):
        two(MiniBatch(need - 1))
    with pytest.raises(ConfigError, match=r"below the first batch.*with 4 images, found 1,073 bytes \(9.99e-07 GiB\)"):
        attach(morphogen.DynamicBatch(budget=1e-6))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("DynamicBatch(step=0)", "above 0; step and limit whole numbers above 0, found budget None bytes, step 0"),
        ("DynamicBatch(budget=0)", "found budget 0 bytes"),
        ("DynamicBatch(budget=-1.0)", "above 0"),
        ("DynamicBatch(limit=0)", "limit 0"),
        ("DynamicBatch(limit=9.5)", "limit is of the wrong type; expected int or None, found 9.5"),
        ("DynamicBatch(scaling='cube')", "no scaling 'cube' of the learning rate; expected auto or linear or sqrt"),
        ("DynamicBatch + Prog + DynamicBatch(limit=9)", "only one of several methods can change the mini-batch"),
    ],
)
def test_settings_out_of_range_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        build_method(text)


def test_what_does_not_fit_the_run_is_refused():
    with pytest.raises(ConfigError, match="the first batch is above the limit; expected limit at least 4, found 3"):
        attach(morphogen.DynamicBatch(limit=3))
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ConfigError, match=r"DynamicBatch: the mini-batch.*attach\(\.\.\., batch_size=\.\.\.\)"):
        morphogen.attach(model, optimizer, morphogen.DynamicBatch(), example=image(), epochs=2)
    for key in ("mixup", "cutmix"):
        settings = recipe(**{key: 0.8})
        with pytest.raises(ConfigError, match=r"DynamicBatch, step: mixup and cutmix pair.*an even number, found 3"):
            Run(settings, load_data(settings), morphogen.DynamicBatch(step=3), "x", seed=0)

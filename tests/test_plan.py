"""The planner: its arithmetic on given figures, its bounds, its reasons, its memory, and the command."""

import json
import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import morphogen
from morphogen.cli import main
from morphogen.cost.flops import cost
from morphogen.cost.memory import Allocations, bytes_of, kept_tensors
from morphogen.errors import ConfigError
from morphogen.methods import AutoProg, Dense, GrowThenPrune, Method, NetworkExpansion, Prog, PruneTrain
from morphogen.parts import Search
from morphogen.plan import Supply, Training, plan
from morphogen.plan.channels import rounded_up
from morphogen.plan.operations import Operations, divide
from morphogen.plan.paths import keeps_momentum, spans_if
from morphogen.plan.predict import Part, predict, step_with_data
from morphogen.plan.reasons import Findings, Rounded, reasons
from morphogen.plan.show import duration, stage_rows, told, total, width_rows
from morphogen.plan.steps import Bench, StepCost
from morphogen.plan.widths import SHARES, SPREAD, PrunedCost, pruned, recommend
from morphogen.pruning.sparsity import sparse_part
from morphogen.run.assembly import Assembly
from morphogen.schedule.stages import Stage
from morphogen.train.models import build_model

from nets import NETS, Plain, Tower, image
from planted import plant_sparse

CPU = torch.device("cpu")
EVEN = Operations(0.9, ("relu",))


@pytest.fixture
def whole_batch(monkeypatch):
    """Half a second is too short for some batches on a busy machine."""
    monkeypatch.setattr(Bench, "fit_batch", lambda self, seconds: None)


# Arithmetic


def test_speedup_of_given_step_times():
    parts = [Part(4, 0.25, 10.0), Part(6, 1.0, 40.0)]
    p = predict(parts, Part(10, 1.0, 40.0), None, overhead=99.0, dense_overhead=99.0)
    assert p.speedup == pytest.approx(10 / 7)  # 4 / 4 + 6 epochs' worth of dense steps; no overheads
    assert p.flop_speedup == pytest.approx(400 / 280)
    assert p.realised == pytest.approx(1.0)
    assert (p.seconds, p.dense_seconds, p.overhead) == (None, None, None)


def test_overheads_count_where_the_steps_are_known():
    parts = [Part(5, 0.5, 10.0), Part(5, 1.0, 40.0)]
    p = predict(parts, Part(10, 1.0, 40.0), 20, overhead=50.0, dense_overhead=10.0)
    assert (p.seconds, p.dense_seconds, p.overhead) == (150 + 50, 200 + 10, 50)
    assert p.speedup == pytest.approx(210 / 200)
    assert p.realised == pytest.approx(0.05 / 0.6)


def test_realised_is_none_where_no_flops_are_saved():
    assert predict([Part(2, 1.0, 5.0)], Part(2, 1.0, 5.0), None, 0, 0).realised is None


def test_data_waits_or_overlaps():
    assert step_with_data(0.1, 0.03, overlapped=False) == pytest.approx(0.13)
    assert step_with_data(0.1, 0.03, overlapped=True) == 0.1
    assert step_with_data(0.1, 0.3, overlapped=True) == 0.3


# Searches


@dataclass(frozen=True)
class Searching(Method):
    """Two searches, each among two depths or three; the last stage is the dense network."""

    def parts(self):
        return [Search(self.continued)]

    def continued(self, network, epochs, found):
        depths = [network.subnetwork(depth=share) for share in (0.25, 0.5, 1.0)]
        stages = [Stage(0, depths[1], tuple(depths[:2]), 1)]
        if found:
            later = tuple(part for part in depths if len(part.blocks["blocks"]) >= len(found[0].blocks["blocks"]))
            stages += [Stage(1, found[0]), Stage(3, network.dense, later, 4)]
        if len(found) > 1:
            stages += [Stage(4, found[1]), Stage(6, network.dense)]
        return stages


@dataclass(frozen=True)
class Supernet(Method):
    """Trains the supernet to the end, whatever is found."""

    def parts(self):
        return [Search(self.schedule)]

    def schedule(self, network, epochs, found):
        return [Stage(0, network.dense, (network.subnetwork(depth=0.5), network.dense))]


@pytest.fixture(scope="module")
def tower():
    return morphogen.trace(Tower(), image())


def assembled(method, network, epochs=8):
    assembly = Assembly(method)
    assembly.plan(network, epochs)
    return assembly


def test_searches_are_followed_to_the_end(tower):
    first, last = (spans_if(assembled(Searching(), tower), 8, lambda parts, i=i: parts[i]) for i in (0, -1))
    quarter, half = tower.subnetwork(depth=0.25), tower.subnetwork(depth=0.5)
    assert [span.stage.subnetwork for span in first] == [half, quarter, tower.dense, quarter, tower.dense]
    assert [span.epochs for span in first] == [1, 2, 1, 2, 2]
    # the dense network was found: its own stage and the last one are one
    assert [span.stage.subnetwork for span in last] == [half, half, tower.dense, tower.dense]
    assert [span.epochs for span in last] == [1, 2, 1, 4]


def test_a_search_that_is_thrown_away_comes_on_top(tower):
    method = AutoProg(stages=2, search_epochs=2, dimensions=("depth",))
    methods = (replace(method, recycle=recycle) for recycle in (True, False))
    kept, thrown = (spans_if(assembled(each, tower), 8, lambda parts: parts[0]) for each in methods)
    assert [(len(span.stage.candidates) > 1, span.epochs) for span in kept] == [(True, 2), (False, 2), (False, 4)]
    assert [(len(span.stage.candidates) > 1, span.epochs) for span in thrown] == [(True, 2), (False, 4), (False, 4)]


def test_a_supernet_that_stays_is_no_search(tower):
    (span,) = spans_if(assembled(Supernet(), tower), 8, lambda parts: parts[0])
    assert len(span.stage.candidates) == 2 and span.epochs == 8


def test_momentum_network_until_the_last_growth(tower):
    assembly = assembled(NetworkExpansion(depth=0.5, stages=3), tower, 3)
    spans = spans_if(assembly, 3, max)
    assert [keeps_momentum(assembly, spans, i) for i in range(3)] == [True, True, False]
    assert not keeps_momentum(assembled(Prog(depth_operator="interpolate"), tower), spans, 0)


def training(model_classes=10, batch=8, side=8, **settings):
    torch.manual_seed(0)
    return Training(
        torch.randn(batch, 3, side, side),
        torch.randint(model_classes, (batch,)),
        lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        **settings,
    )


def test_bounds_of_a_searching_method(monkeypatch):
    """With planted times that follow the FLOPs."""

    def planted(bench, part):
        bench.dense_times.append(1.0)
        flops, dense = (cost(bench.network, p, bench.batch_size).training for p in (part, bench.network.dense))
        return StepCost(1, flops, *3 * (flops / dense,), 0.5, 0.0, 0.0, EVEN, kept=1, activations=1, copy=1)

    monkeypatch.setattr(Bench, "_measured", planted)
    result = plan(Tower(), Searching(), training(), epochs=8, seconds=0.1)
    fastest, largest = result.runs
    assert "fastest" in fastest.found and "largest" in largest.found
    assert fastest.prediction.flop_speedup > largest.prediction.flop_speedup > 1
    for run in (fastest, largest):
        assert run.prediction.speedup == pytest.approx(run.prediction.flop_speedup)
    assert [stage.candidates for stage in fastest.stages[:3]] == [2, 0, 3]
    one, other = fastest.stages[1].flops, fastest.stages[2].flops
    assert one < other < result.dense.flops  # a search's steps cost the mean of its candidates'
    assert any("candidates" in note for note in result.notes)


# Reasons

FOLLOWS = Findings(
    time_share=0.5,
    least=0.5,
    flop_share=0.5,
    half=0.5,
    update=0.02,
    operations=EVEN,
    dense_operations=EVEN,
    images_per_second=100.0,
)
PLANTED = {
    "launch-bound: with half the batch, forward and backward pass still take 90%": {"time_share": 0.8, "half": 0.902},
    "update-bound: the update of the weights is 40% of a step": {"time_share": 0.8, "half": 0.7, "update": 0.4},
    r"operations without FLOPs \(gelu ...\) take 50% of a pass and do not shrink \(2.50 of dense\)": {
        "time_share": 0.5,
        "flop_share": 0.3,
        "operations": Operations(0.5, ("gelu",)),
    },
    "matrix products run at 0.62 of the dense network's FLOPs a second": {"time_share": 0.8},
    "loader-bound: the data layer alone delivers 80 images/s, the steps would take 100": {"loader": 80.0},
    "odd channel counts: rounded up to multiples of 16, a step takes 0.90 of the time with 1.20 of": {
        "rounded": [Rounded(8, 1.0, 1.1, 1.1), Rounded(16, 0.9, 0.99, 1.2)]
    },
    "no cause found": {
        "time_share": 0.8,
        "flop_share": 0.7,
        "operations": Operations(0.81, ("gelu",)),
        "dense_operations": Operations(0.85, ("gelu",)),
    },
}


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_cause_is_told(text):
    told = reasons(replace(FOLLOWS, **{"least": PLANTED[text].get("time_share", 0.5)} | PLANTED[text]))
    assert any(re.search(text, sentence) for sentence in told), told


@pytest.mark.parametrize(
    "harmless",
    [
        {},
        {"half": 0.95},  # time follows the FLOPs all the same
        {"update": 0.5},
        {"half": None},
        {"loader": 100.0},
        {"rounded": [Rounded(8, 1.05, 1.1, 1.1)]},
        {"rounded": [Rounded(8, 0.9, 1.01, 1.1)]},  # within the noise
        {"time_share": 0.8, "least": 0.54, "half": 0.9},
        {"time_share": 0.4},
        {"operations": Operations(0.5, ("gelu",)), "dense_operations": Operations(0.5, ("gelu",))},
    ],
)
def test_no_reason_where_there_is_none(harmless):
    assert reasons(replace(FOLLOWS, **harmless)) == ()


def test_the_update_alone_is_not_called_launch_bound():
    """Half the batch takes 0.7 of the time because 0.4 is the update, whatever the batch."""
    told = reasons(replace(FOLLOWS, time_share=0.8, least=0.8, half=0.7, update=0.4))
    assert not any("launch" in sentence for sentence in told)


def test_clocks_on_operations_tell_counted_from_others():
    large, small = torch.randn(300, 300), torch.randn(4)
    matrix = divide(lambda: [large @ large for _ in range(20)] and small.relu(), CPU)
    assert matrix.counted > 0.9 and matrix.others == ("relu",)
    assert divide(small.relu, CPU).counted == 0


def test_channels_are_rounded_up_within_the_group():
    network = morphogen.trace(Plain(), image())
    odd = network.subnetwork(width=0.6)
    sizes = {name: len(units) for name, units in odd.channels.items()}
    assert sizes == {"conv1": 4, "conv2": 9}
    rounded = rounded_up(network, odd, 4)
    assert {name: len(units) for name, units in rounded.channels.items()} == {"conv1": 4, "conv2": 12}
    assert set(odd.channels["conv2"]) < set(rounded.channels["conv2"])
    assert rounded_up(network, odd, 32) == network.dense


# Widths


def costs(*times):
    """Of multiples of 1, 8, 16, 32, whose steps take these shares of dense in all; FLOPs grow by a tenth of them."""
    return [
        PrunedCost(share, multiple, (10 + i) / 30, time * part)
        for share, part in ((0.75, 0.5), (0.25, 0.5))
        for i, (multiple, time) in enumerate(zip((1, 8, 16, 32), times, strict=True))
    ]


@pytest.mark.parametrize(
    "times, multiple, sentence",
    [
        # the best is 1.00: up to 1.02 counts as equal, and the smallest is taken
        ((1.25, 1.10, 1.00, 1.10), 16, "0.80 of the time that they take with irregular channel counts, with 1.20 of"),
        ((1.25, 1.019, 1.00, 1.10), 8, "0.82 of the time that they take with irregular channel counts, with 1.10 of"),
        ((1.25, 1.021, 1.00, 1.10), 16, "0.80 of the time"),
        ((1.25, 1.021, 1.019, 1.00), 16, "0.82 of the time"),
        ((1.25, 1.20, 1.15, 1.00), 32, "with 1.30 of the FLOPs"),
        ((1.019, 1.01, 1.00, 1.10), 1, "saves no more than 2% of the step time"),
        ((1.00, 1.10, 1.20, 1.30), 1, "saves no more than 2% of the step time"),
    ],
)
def test_the_smallest_multiple_about_as_fast_as_the_best(times, multiple, sentence):
    widths = recommend(costs(*times))
    assert widths.multiple_of == multiple
    assert widths.recommendation.startswith(f"multiple_of={multiple}: ") and sentence in widths.recommendation


def test_a_row_for_each_multiple():
    rows = width_rows(recommend(costs(1.25, 1.10, 1.00, 1.10)))
    assert [row["multiple_of"] for row in rows] == ["1", "8", "16", "32"]
    assert list(rows[2].values()) == ["16", "0.400", "0.500", "0.400", "0.500", "1.000"]
    assert list(rows[0])[1:] == ["FLOPs at 0.75", "time at 0.75", "FLOPs at 0.25", "time at 0.25", "time in all"]


@pytest.fixture(scope="module")
def vit():
    return morphogen.trace(build_model(VIT, 10), image(size=16))


@pytest.fixture(scope="module")
def resnet():
    return morphogen.trace(build_model("resnet8", 10), image())


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_pruned_networks_are_legal_and_near_their_share(name, request):
    network = request.getfixturevalue(name)
    for share in SHARES:
        part = pruned(network, share)
        cost(network, part)  # runs, on fake tensors
        assert part == pruned(network, share)
        assert (part.blocks, part.resolution) == (network.dense.blocks, network.dense.resolution)
        for group in network.groups:
            assert abs(len(part.channels[group.name]) - share * group.size) <= SPREAD * share * group.size + 0.5
        left = sum(map(len, part.channels.values())) / sum(group.size for group in network.groups)
        assert left == pytest.approx(share, abs=0.05)
        assert any(len(units) % 8 for units in part.channels.values())


def test_one_group_is_pruned_more_than_another_and_always_the_same():
    network = morphogen.trace(wide(), image())
    counts = [[len(units) for units in pruned(network, share).channels.values()] for share in SHARES]
    assert counts == [[41, 63], [35, 56], [19, 26]]  # of 64 and 96, and those of any other run


@pytest.mark.parametrize("name", NETS)
def test_multiples_are_those_of_pruning(name):
    """What is measured has as many channels as a method with this `multiple_of` would leave."""
    network = morphogen.trace(NETS[name](), image())
    with torch.no_grad():
        for parameter in network.model.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    odd = pruned(network, 0.25)
    plant_sparse(network, odd)
    for multiple in (1, 3, 4, 8, 16, 32):
        left, rounded = sparse_part(network, 1e-4, multiple), rounded_up(network, odd, multiple)
        assert {name: len(units) for name, units in left.channels.items()} == {
            name: len(units) for name, units in rounded.channels.items()
        }


def test_a_group_smaller_than_the_multiple_stays_whole():
    network = morphogen.trace(Plain(), image())  # of 8 and 16 channels
    for multiple, sizes in ((16, [8, 16]), (8, [8, 8])):
        assert [len(units) for units in rounded_up(network, pruned(network, 0.25), multiple).channels.values()] == sizes


def wide():
    return nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 96, 1), nn.Flatten(), nn.Linear(96 * 64, 10))


def in_sixteens(bench, part):
    """A device that takes channels sixteen at a time."""
    bench.dense_times.append(1.0)
    blocks = sum(-(-len(units) // 16) for units in part.channels.values())
    flops = cost(bench.network, part, bench.batch_size).training
    time = blocks / 10 + 0.1 * (len(part.channels["0"]) % 16 > 0)
    return StepCost(1, flops, time, time, time, 0.5, 0.0, 0.0, EVEN, 1, 1, 1)


@pytest.mark.parametrize("method", [PruneTrain(), GrowThenPrune(), Dense()])
def test_a_device_that_likes_sixteens_is_found_out(method, monkeypatch):
    windows, progress = [], []
    monkeypatch.setattr(Bench, "_measured", in_sixteens)
    monkeypatch.setattr(Bench, "fit_batch", lambda self, seconds: windows.append(seconds))
    result = plan(wide(), method, training(), epochs=20, seconds=6.0, progress=lambda *seen: progress.append(seen))
    distinct = progress[-1][1]
    assert {total for _, total in progress} == {distinct} and windows == [6.0 / distinct]
    note = any("what pruning takes out" in note for note in result.notes)
    if isinstance(method, Dense):
        assert result.widths is None and distinct == 1 and not note
    else:
        assert result.widths is not None and result.widths.multiple_of == 16 and note
        assert [c.multiple_of for c in result.widths.costs] == 3 * [1, 8, 16, 32]


def test_nothing_to_prune():
    with pytest.raises(ConfigError, match="nothing of this model can be pruned"):
        plan(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), PruneTrain(), training(), epochs=4, seconds=0.1)


# Memory


def test_memory_of_a_net_counted_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 10))
    images, labels = torch.randn(8, 3, 2, 2), torch.randint(10, (8,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    weights = 4 * (12 * 5 + 5 + 5 * 10 + 10)
    assert bytes_of(kept_tensors(model, optimizer)) == 3 * weights  # weights, gradients, momentum
    with Allocations([images, labels, *model.parameters()]) as allocations:
        hidden = model[1](model[0](images))
        output = model[2](hidden)
        del hidden  # autograd keeps it
        assert allocations.live == weights + 4 * 8 * (12 + 5 + 10) + 8 * 8
        del output
        assert allocations.live == weights + 4 * 8 * 12 + 8 * 8
        assert allocations.peak == weights + 4 * 8 * (12 + 5 + 10) + 8 * 8


# Whole plans


def test_a_plan_of_a_growing_cnn(whole_batch):
    result = plan(Plain(), NetworkExpansion(stages=2), training(), epochs=4, seconds=0.2)
    (run,) = result.runs
    assert [(s.start, s.epochs, s.width) for s in run.stages] == [(0, 2, 0.5), (2, 2, 1.0)]
    assert run.stages[1].time_share == run.stages[1].flop_share == 1 == result.dense.time_share
    assert run.stages[0].flop_share < 0.5 and run.stages[0].parameters < run.stages[1].parameters
    assert run.stages[0].memory < run.stages[1].memory == result.dense.memory
    expected = 2 / (1 + run.stages[0].time_share)
    assert run.prediction.speedup == pytest.approx(expected) and run.prediction.seconds is None
    assert result.batch_size == 8 and run.stages[0].images_per_second == pytest.approx(8 / run.stages[0].seconds)
    json.dumps(result.to_dict())
    assert [row["stage"] for row in stage_rows(result, run)] == ["1", "2", "dense"]
    assert "predicted speedup" in total(run)
    told_twice = replace(run, stages=tuple(replace(stage, reasons=("slow",)) for stage in run.stages))
    assert told(told_twice) == ["stage 1, 2: slow"]


def test_dense_is_predicted_to_save_nothing():
    result = plan(Plain(), Dense(), training(), epochs=4, seconds=0.1)
    assert result.runs[0].prediction.speedup == 1.0


def test_averages_count_in_time_and_memory(whole_batch):
    """Prog keeps a momentum network in its first stage; the recipe keeps an EMA throughout."""
    plans = [
        plan(Tower(rate=0.0), Prog(stages=2, depth_operator=operator), training(ema=ema), epochs=4, seconds=0.2)
        for operator, ema in (("interpolate", False), ("mogrow", False), ("mogrow", True))
    ]
    first = [p.runs[0].stages[0].memory for p in plans]
    copy = first[1] - first[0]
    assert copy > 0 and first[2] - first[1] == copy
    last = [p.runs[0].stages[1].memory for p in plans]
    assert last[0] == last[1] < last[2]


def test_the_data_layer_counts():
    supply = Supply(lambda size: 1.0, overlapped=False)  # one image a second
    result = plan(Plain(), NetworkExpansion(stages=2), training(), epochs=4, seconds=0.1, supply=supply)
    assert result.runs[0].prediction.speedup == pytest.approx(1.0, abs=0.02)
    assert all("loader-bound" in stage.reasons[0] for stage in result.runs[0].stages)


def test_a_batch_too_slow_for_the_budget_is_made_smaller_and_said_so():
    slow = training(batch=64)
    result = plan(Plain(), NetworkExpansion(stages=2), slow, epochs=4, steps_per_epoch=10, seconds=1e-3)
    assert result.batch_size == 2 and any("2 images instead of 64" in note for note in result.notes)
    stages = result.runs[0].stages
    prediction = result.runs[0].prediction
    steps = 10 * sum(stage.epochs * stage.seconds for stage in stages)
    assert prediction.seconds == pytest.approx(steps + prediction.overhead)
    whole = morphogen.trace(Plain(), image())
    assert result.dense.flops == cost(whole, whole.dense, 64).training  # figures are of the whole batch


def test_a_smaller_batch_is_scaled_but_the_update_is_not():
    small = StepCost(10, 5.0, 0.5, 0.4, 0.6, 0.9, 0.5, 0.1, EVEN, kept=100, activations=20, copy=40)
    dense = StepCost(10, 10.0, 1.0, 1.0, 1.0, 0.6, 0.2, 0.1, EVEN, kept=200, activations=40, copy=40)
    large = small.scaled(4, dense)
    # a step of 0.5, half of it the update: 0.25 + 4 x 0.25; the dense one: 0.2 + 4 x 0.8
    assert large.time == pytest.approx(1.25 / 3.4) and large.update == pytest.approx(0.25 / 1.25)
    assert (large.low, large.high) == pytest.approx((0.4 * 2.5 / 3.4, 0.6 * 2.5 / 3.4))
    assert (large.flops, large.activations, large.kept, large.half) == (20, 80, 100, None)
    assert large.average == pytest.approx(0.05 / 1.25) and small.scaled(1, dense) == small


def test_nothing_diverges_and_the_weights_stay():
    seen = []

    def loss(model, images, labels):
        value = F.cross_entropy(model(images), labels)
        seen.append(float(value.detach()))
        return value

    plan(Plain(), Dense(), replace(training(), loss=loss), epochs=1, seconds=0.1)
    assert len({round(value, 3) for value in seen}) <= 4  # of the batch, a half, a quarter and an eighth of it


def test_durations_in_the_unit_that_reads_best():
    assert [duration(s) for s in (0.5, 119, 600, 7200)] == ["0.5 s", "119.0 s", "10.0 min", "2.0 h"]


# The command

VIT = "timm:vit_tiny_patch16_224(img_size=16, patch_size=4, embed_dim=32, depth=4, num_heads=2)"
QUICK = ["--seconds", "0.1", "--batch_size", "16", "--epochs", "4"]


def test_the_command_prints_json(capsys):
    assert main(["plan", VIT, "--data", "digits", "--images", "64", "--method", "Prog", *QUICK, "--json", "true"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (run,) = printed["runs"]
    assert [stage["resolution"] for stage in run["stages"]] == [[8, 8], [12, 12], [16, 16]]
    assert [stage["blocks"] for stage in run["stages"]] == [[2, 4], [3, 4], [4, 4]]
    assert run["prediction"]["seconds"] > run["prediction"]["overhead"] > 0
    assert run["stages"][0]["loader_images_per_second"] > 0
    assert printed["environment"]["torch"] == torch.__version__


def test_the_command_prints_a_table_and_takes_a_recipe(whole_batch, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(
        f"model: {VIT}\nmethod: Dense\noptimizer: adamw\nmixup: 0.8\nema: 0.99\nclip_grad: 1.0\nprecision: bfloat16\n"
    )
    recipe = ["--config", str(tmp_path / "recipe.yaml"), "--image_size", "16", "--num_classes", "10"]
    assert main(["plan", *recipe, "--method", "NetworkExpansion(depth=0.5, stages=2)", *QUICK]) == 0
    text = capsys.readouterr().out
    for part in ("2 of 4", "4 of 4", "dense", "predicted speedup", "batches of 16, bfloat16", "no data given"):
        assert part in text


def test_the_command_recommends_a_multiple(whole_batch, capsys):
    small = ["plan", "nets:Plain", "--image_size", "8", "--num_classes", "10", "--method", "PruneTrain", *QUICK]
    assert main(small) == 0
    text = capsys.readouterr().out
    for part in ("FLOPs at 0.75", "time at 0.25", "time in all", "\nmultiple_of=", "what pruning takes out"):
        assert part in text


@pytest.mark.nightly
def test_the_command_recommends_a_multiple_for_the_mlp_of_a_vision_transformer(whole_batch, capsys):
    shallow = VIT.replace("depth=4", "depth=2")
    arguments = ["--image_size", "16", "--num_classes", "10", "--method", "PruneTrain", "--json", "true"]
    assert main(["plan", shallow, *QUICK, *arguments]) == 0
    widths = json.loads(capsys.readouterr().out)["widths"]
    assert [(c["share"], c["multiple_of"]) for c in widths["costs"]] == [
        (share, multiple) for share in SHARES for multiple in (1, 8, 16, 32)
    ]
    assert all(0 < c["flop_share"] <= 1 and c["time_share"] > 0 for c in widths["costs"])
    assert widths["recommendation"].startswith(f"multiple_of={widths['multiple_of']}: ")


BAD = {
    "no method": (["--method", "Prgo"], "no method 'Prgo'"),
    "a method that never prunes": (["--method", "PruneTrain(interval=9)"], "interval is longer than the run"),
    "too few epochs": (["--method", "Prog", "--epochs", "2"], "a stage needs at least one epoch"),
    "no images": (["--images", "3", "--method", "Prog"], "fewer training images than one batch"),
    "no time": (["--seconds", "0"], "seconds above 0"),
    "an unknown key": (["--colour", "red"], "colour"),
    "label maps without images": (["--token_labels", "maps", "--method", "Prog"], "label maps go with images"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_exit_code_2(what, capsys):
    arguments, text = BAD[what]
    assert main(["plan", VIT, *QUICK, "--image_size", "16", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(text, error) and error.count("\n") == 1, error


def test_a_model_that_cannot_be_traced(capsys, tmp_path, monkeypatch):
    (tmp_path / "odd_net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(3, 10)\n"
        "    def forward(self, x):\n"
        "        return self.fc(x.mean((2, 3))) if float(x.sum()) > 0 else None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["plan", "odd_net:Net", *QUICK, "--image_size", "16"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("morphogen: ")  # PyTorch logs before it

"""What pruning saves: the ledger's figures by hand, the all-reduce model, the tables and the pictures."""

import json

import onnxruntime
import pytest
import torch
from torch import nn

import morphogen
from morphogen.cli import main
from morphogen.cost.communication import WORKERS, all_reduce, run_bytes
from morphogen.cost.flops import cost
from morphogen.dense.subnet import SubNetwork
from morphogen.errors import ConfigError
from morphogen.methods import Dense, PruneTrain
from morphogen.morph.commit import morph
from morphogen.report.savings.over_epochs import draw_memory
from morphogen.report.savings.rows import saving_rows
from morphogen.report.savings.shares import bytes_of_a_step, bytes_of_an_epoch, flops_of_a_step
from morphogen.report.savings.write import PICTURES, draw_savings
from morphogen.report.sparsity import densities, mapped_layers, output_maxima
from morphogen.train.cifar_resnet import CIFAR_RESNETS
from morphogen.train.config import Recipe
from morphogen.train.loop import Run
from morphogen.train.sources import load_data

from nets import Plain, Residual, Tower

SMALL = ["--data", "digits", "--epochs", "3", "--batch_size", "64", "--images", "256", "--image_size", "8"]
GONE = 2
"""Channels of the first block that `planted` has zeroed."""


def planted(num_classes):
    """A ResNet-14 of which two channels inside the first block are zero, and all of the second block."""
    model = CIFAR_RESNETS["resnet14"](num_classes=num_classes, width=8)
    first, second = model.layer1
    with torch.no_grad():
        for tensor in (first.conv1.weight, first.bn1.weight, first.bn1.bias):
            tensor[:GONE] = 0
        first.conv2.weight[:, :GONE] = 0
        for tensor in second.parameters():
            tensor.zero_()
    return model


def traced(model, size=8):
    return morphogen.trace(model, torch.zeros(2, 3, size, size))


def without(network, group, *gone):
    """The dense network without some channels of a group."""
    dense = network.dense
    left = tuple(unit for unit in dense.channels[group] if unit not in gone)
    return SubNetwork({**dense.channels, group: left}, dense.blocks, dense.resolution)


# Counting


def test_normalisation_traffic_by_hand():
    """Nine passes of float32 over 8, 12 and 8 channels of 8 x 8 pixels, or 8, 9 and 8."""
    net = traced(Residual())
    assert cost(net, net.dense, 5).normalisation == 9 * 4 * 5 * 64 * (8 + 12 + 8)
    assert cost(net, without(net, "conv1", 1, 2, 3), 5).normalisation == 9 * 4 * 5 * 64 * (8 + 9 + 8)


@pytest.mark.parametrize(
    ("norm", "passes"), [(nn.GroupNorm(2, 8), 9), (nn.InstanceNorm2d(8), 9), (nn.RMSNorm([8, 6, 6]), 8), (nn.ReLU(), 0)]
)
def test_each_kind_of_normalisation_counts_once(norm, passes):
    net = traced(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(8 * 36, 2)))
    assert cost(net, net.dense, 3).normalisation == passes * 4 * 3 * 8 * 36


def test_traffic_is_in_the_bytes_of_autocast():
    net = traced(Plain())
    whole = cost(net, net.dense, 2)
    with torch.autocast("cpu", torch.bfloat16):
        half = cost(net, net.dense, 2)
    assert whole.normalisation == 2 * half.normalisation == 9 * 4 * 2 * 8 * 64
    assert whole.training == half.training


def test_layers_of_blocks_that_are_out_do_not_count():
    net = traced(Tower(depth=4))
    assert cost(net, net.dense).layers == 6  # the stem, four blocks, the head
    assert cost(net, net.subnetwork(depth=0.5)).layers == 4


def test_densities_by_hand():
    """conv2 is 16 x 8 x 3 x 3; half of its inputs and a quarter of its outputs go."""
    model = Plain()
    net = traced(model)
    dense = net.dense
    left = {"conv1": (0, 2, 5, 7), "conv2": tuple(range(4, 16))}
    morph(net, SubNetwork({**dense.channels, **left}, dense.blocks, dense.resolution))
    with torch.no_grad():
        for weight in (model.conv1.weight, model.conv2.weight, model.fc.weight):
            weight.fill_(1)
        model.conv2.weight[0, :, 0] = 1e-5  # 4 inputs x 3 taps
        model.fc.weight[:, 0] = 0
    found = {density.layer: (density.channels, density.weights) for density in densities(net, 1e-4)}
    assert found == {
        "conv1": (0.5, 0.5),
        "conv2": (0.5 * 0.75, pytest.approx(0.5 * 0.75 - 12 / (16 * 8 * 9))),
        "fc": (0.75, pytest.approx(0.75 - 10 / 2560)),
    }


def test_a_block_that_is_out_has_no_density():
    net = traced(Tower(depth=4))
    morph(net, net.subnetwork(depth=0.5))
    found = [density.channels for density in densities(net, 1e-4)]
    assert found.count(0) == 2 and found.count(1) == 4


def test_the_map_is_at_dense_positions():
    model = Plain()
    net = traced(model)
    with torch.no_grad():
        model.conv1.weight.zero_()
        model.conv1.weight[:, 1, 1, 1] = torch.tensor([1, -2, 3, -4, 5, -6, 7, 0.123456])
    names = mapped_layers(net, ["conv1"])
    assert output_maxima(net, names) == {"conv1": [1, 2, 3, 4, 5, 6, 7, 0.123]}
    morph(net, without(net, "conv1", 0, 3))
    assert output_maxima(net, names) == {"conv1": [0, 2, 3, 0, 5, 6, 7, 0.123]}


def test_a_layer_that_is_out_is_mapped_as_zeros():
    net = traced(Tower(depth=4, channels=12))
    morph(net, SubNetwork(net.dense.channels, {"blocks": (0, 3)}, net.dense.resolution))
    assert output_maxima(net, ["blocks.1.conv.weight"]) == {"blocks.1.conv": [0] * 12}


def test_three_layers_of_one_path_are_mapped():
    class Bottleneck(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 1)

        def forward(self, x):
            return x + self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    blocks = nn.Sequential(nn.Conv2d(3, 8, 1), *(Bottleneck() for _ in range(3)), nn.Flatten(), nn.Linear(512, 2))
    assert mapped_layers(traced(blocks)) == ("2.a.weight", "2.b.weight", "2.c.weight")
    assert mapped_layers(traced(Plain())) == ("conv1.weight", "conv2.weight")  # the classes are no channels
    with pytest.raises(ConfigError, match=r"sparsity_map, fc: no layer .* such as conv1, conv2"):
        mapped_layers(traced(Plain()), ["fc"])


# The all-reduce


def test_all_reduce_by_hand():
    """4,000 bytes of gradients. In a group of 16, 15 + 15 messages of 250; among 4 groups, 3 + 3 of a quarter."""
    found = all_reduce(1000, 64)
    assert (found.inside, found.between, found.total) == (30 * 250, 6 * 250 / 4, 7875)
    assert all_reduce(1000, 16).between == 0 and all_reduce(1000, 1).total == 0
    assert all_reduce(1000, 24).inside == 2 * 7 * 500  # three groups of eight
    for workers in (2, 6, 24, *WORKERS):
        assert all_reduce(1000, workers).total == pytest.approx(8000 * (workers - 1) / workers)


def test_a_run_sends_what_its_stages_send():
    assert run_bytes([(1000, 10), (500, 20)], 64) == 10 * 7875 + 20 * 7875 / 2


def test_the_share_saved_does_not_depend_on_the_number_of_workers():
    """As the paper finds: 55 % less at every scale."""
    shares = [run_bytes([(1000, 10), (250, 30)], n) / run_bytes([(1000, 40)], n) for n in WORKERS]
    assert shares == [pytest.approx((10 + 30 / 4) / 40)] * len(WORKERS)


# Tables


def record(**settings):
    """A run of 4 epochs of 80 images, of which the last two are at half the size and twice the batch."""
    dense = {"epoch": 0, "parameters": 100, "training_flops": 1000, "inference_flops": 30, "normalisation": 80}
    dense |= {"layers": 9, "memory": None, "steps": 40, "images": 320, "batch_size": 8}
    half = {"epoch": 2, "parameters": 50, "training_flops": 800, "inference_flops": 15, "normalisation": 80}
    half |= {"layers": 7, "memory": None, "steps": 10, "images": 160, "batch_size": 16}
    pruned = {"dense": dense, "inference": [{"batch": 10, "dense": 200.0, "pruned": 300.0}]}
    end = {**half, "epoch": 4, "parameters": 25, "layers": 6, "steps": 0, "images": 0}
    stages = [{**dense, "steps": 20, "images": 160}, half, end]
    return {"method": "M", "stopped": None, "stages": stages, "pruned": pruned, "epochs": [{"epoch": 3}]} | settings


def test_the_table_by_hand():
    assert saving_rows([record(), {"method": "Dense", "accuracy": 1.0}, record(method="N", stopped="lost")]) == [
        {
            "method": "M",
            "training FLOPs": "70.0",  # 20 of 40 whole steps, 10 of 800 / 1000
            "inference FLOPs": "50.0",
            "norm. bytes": "75.0",
            "all-reduce bytes": "62.5",
            "parameters": "25.0",
            "layers removed": "3 of 9",
            "images/s at 10": "300 (1.50x)",
        }
    ]


def test_lines_over_epochs_by_hand():
    """With twice the images in a step and half the steps in an epoch."""
    assert flops_of_a_step(record()) == [1, 0.4]
    assert bytes_of_a_step(record(), 64) == [1, 0.5]
    assert bytes_of_an_epoch(record(), 64) == [1, 0.25]


def test_smaller_steps_count_by_their_images():
    """Epochs of 24 + 24 + 24 + 8 images."""
    run = record()
    run["stages"][1] |= {"batch_size": 24, "steps": 8, "training_flops": 1200, "normalisation": 120}
    [row] = saving_rows([run])
    assert (row["training FLOPs"], row["norm. bytes"]) == ("70.0", "75.0")
    assert row["all-reduce bytes"] == "60.0"  # 20 of 40 whole steps, 8 of half
    assert flops_of_a_step(run) == [1, 0.4]
    assert bytes_of_an_epoch(run, 64) == [1, pytest.approx(0.2)]  # 4 steps instead of 10
    for stage in (run["pruned"]["dense"], *run["stages"]):
        del stage["images"]  # of a run from before they were counted
    assert bytes_of_an_epoch(run, 64) == [1, pytest.approx(0.5 / 3)]


def test_memory_is_drawn_where_it_was_counted(tmp_path):
    run = record(model="net", data="digits")
    for stage, mebibytes in zip([run["pruned"]["dense"], *run["stages"]], (40, 40, 30, 20), strict=True):
        stage["memory"] = mebibytes * 2**20
    grown = {**run, "method": "grown", "pruned": None}
    draw_savings([grown, {**grown, "stopped": "lost"}, record(model="net", data="digits", pruned=None)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["memory.png"]
    draw_memory([grown, run], tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 5000


# Runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run that prunes."""
    folder = tmp_path_factory.mktemp("pruned")
    assert main(["train", "--model", "test_savings:planted", *SMALL, "--method", METHOD, "--output", str(folder)]) == 0
    return folder


METHOD = "PruneTrain(interval=1)"


def test_a_run_that_prunes_keeps_its_books(trained):
    [run] = json.loads((trained / "results.json").read_text())
    pruned, first, last = run["pruned"], run["stages"][0], run["stages"][-1]
    dense = pruned["dense"]
    assert dense["steps"] == 12 == sum(stage["steps"] for stage in run["stages"])
    for key in ("parameters", "training_flops", "inference_flops", "normalisation", "layers"):
        assert dense[key] == first[key]
    assert [stage["layers"] for stage in run["stages"]] == [16, 14]  # the second block of the first stage is out
    # On 8 x 8: two channels inside a block, and two layers of a block.
    assert first["normalisation"] - last["normalisation"] == 9 * 4 * 64 * 64 * (GONE + 2 * 8)
    # Two filters and their normalisation, two inputs of the next layer; two layers with theirs.
    assert first["parameters"] - last["parameters"] == 2 * GONE * 72 + 2 * GONE + 2 * (8 * 72 + 16)
    for maxima in pruned["sparsity"].values():
        assert len(maxima) == 3 and len({len(epoch) for epoch in maxima}) == 1
    density = {layer["layer"]: layer for layer in pruned["density"]}
    assert density["layer1.0.conv1"]["channels"] == 0.75 >= density["layer1.0.conv1"]["weights"]
    assert density["layer1.1.conv2"] == {"layer": "layer1.1.conv2", "channels": 0, "weights": 0}
    assert [speed["batch"] for speed in pruned["inference"]] == [10, 100]
    assert all(speed[of] > 0 for speed in pruned["inference"] for of in ("dense", "pruned"))


def test_training_draws_what_it_saved(trained):
    pictures = [path for pattern in PICTURES for path in trained.glob(pattern)]
    assert len(pictures) == len(PICTURES) and all(path.stat().st_size > 5000 for path in pictures)


def test_the_pruned_network_leaves(trained, tmp_path, capsys):
    command = ["export", str(trained), "--onnx", "true", "--program", "true", "--output", str(tmp_path)]
    assert main(command) == 2 and not list(tmp_path.iterdir())  # no code that a file names is run
    assert "--model package.module:function" in capsys.readouterr().err
    assert main([*command, "--model", "test_savings:planted"]) == 0
    weights = torch.load(trained / "model.pt", weights_only=True)["state_dict"]
    model = morphogen.load(planted(10), tmp_path / "model.safetensors").eval()
    assert model.layer1[0].conv1.out_channels == 8 - GONE and not list(model.layer1[1].parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = model(images)
        program = torch.export.load(tmp_path / "model.pt2").module()
        torch.testing.assert_close(program(images), expected, atol=1e-5, rtol=1e-5)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    [output] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), expected, atol=1e-4, rtol=1e-4)


def test_another_run_takes_the_pictures_away(trained):
    arguments = ["train", "--model", "test_savings:planted", *SMALL, "--epochs", "1", "--output", str(trained)]
    assert main([*arguments, "--method", "Dense", "--overwrite", "true"]) == 0
    assert not [path for pattern in PICTURES for path in trained.glob(pattern)]


def test_compare_tells_and_draws_what_pruning_saved(tmp_path, capsys):
    arguments = ["compare", "--model", "test_savings:planted", *SMALL, "--methods", f"[{METHOD}]"]
    arguments += ["--output", str(tmp_path)]
    assert main(arguments) == 0
    assert "what pruning left" in capsys.readouterr().out
    assert "| 2 of 16 |" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "sparsity_PruneTrain_interval=1_0.png").stat().st_size > 5000
    # A dense run from before pruning was there has none of the new figures.
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    for line in lines:
        if line["method"] == "Dense":
            del line["pruned"]
            for stage in line["stages"]:
                for key in ("inference_flops", "normalisation", "layers", "memory"):
                    del stage[key]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([*arguments, "--sparsity_map", "[conv1]"]) == 0  # which is no part of what was run


def test_layers_to_map_can_be_named():
    recipe = Recipe("test_savings:planted", epochs=1, batch_size=64, images=128, sparsity_map=["conv1"])
    run = Run(recipe, load_data(recipe), PruneTrain(interval=1), "named", seed=0)
    list(run.epochs())
    assert list(run.ledger.pruned.sparsity) == ["conv1"]
    dense = Run(recipe, load_data(recipe), Dense(), "dense", seed=0)
    assert dense.ledger.pruned is None and dense.ledger.record()["pruned"] is None

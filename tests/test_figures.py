"""`morphogen figure`: the papers' figures from ledgers, each from hand-made runs and some from a real one."""

import json
import random
import re
from dataclasses import replace

import pytest
import torch

import morphogen
from morphogen.cli import main
from morphogen.dense.subnet import SubNetwork
from morphogen.errors import ConfigError
from morphogen.methods import NetworkExpansion
from morphogen.morph.commit import morph
from morphogen.report.correlations import MOST, FeatureMaps
from morphogen.report.figures.catalogue import FIGURES, draw_figure
from morphogen.report.figures.network_expansion import between, correlated
from morphogen.report.figures.prunetrain import (
    gated_inference,
    gated_training,
    one_time_overhead,
    pruned_in_phases,
    shares_of_epochs,
    shrinking,
)
from morphogen.report.gating import gated_share
from morphogen.report.outputs import read_output
from morphogen.report.records import check_record
from morphogen.train.config import Recipe
from morphogen.train.loop import Run
from morphogen.train.sources import load_data

from hostile import text_of
from nets import Plain
from pages import MARKUP, folder, grown, pruned, run, searched

EVERY = [
    run(),
    run(seed=1, accuracies=(30.0, 50.0, 70.0, 90.0)),
    run(model="larger", accuracies=(10.0, 30.0, 60.0, 95.0), second=2.0),
    grown(),
    searched(),
    pruned("PruneTrain(ratio=0.1, interval=1)", accuracy=79.0, left=0.6),
    pruned("PruneTrain(ratio=0.2, interval=1)"),
    pruned("PruneTrain(ratio=0.2, interval=2)", seed=1),
    pruned("PruneTrain(ratio=0.2) + DynamicBatch"),
]


def with_memory(record):
    for each in [record["pruned"]["dense"], *record["stages"]]:
        each["memory"] = 2**20
    return record


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("study"), *EVERY, with_memory(pruned("PruneTrain(interval=3)")))


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_drawn(name, study, tmp_path):
    """As SVG, whose text is text."""
    path, output = tmp_path / "figure.svg", read_output(study)
    if name in ("network-expansion/5", "prunetrain/8", "prunetrain/10"):  # means over the seeds of one model
        output = replace(output, records=[each for each in output.records if each["model"] == "net"])
    draw_figure(FIGURES[name], [output], path)
    text = path.read_text()
    assert "<text" in text and len(text) > 5000


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_says_what_it_needs(name, tmp_path):
    """Of a run that was stopped, none is made."""
    with pytest.raises(ConfigError, match=re.escape(f"figure {name}")) as raised:
        draw_figure(FIGURES[name], [read_output(folder(tmp_path, run("Grow", stopped="lost")))], tmp_path / "x.png")
    assert FIGURES[name].needs in str(raised.value) and not (tmp_path / "x.png").exists()


def test_a_name_is_neither_markup_nor_a_formula(tmp_path):
    hostile = f"{MARKUP.replace(chr(0), '')} $\\frac{{1}}{{0}}$"
    records = [run(model=hostile), grown(hostile), pruned(hostile, model=hostile)]
    for name in ("network-expansion/4", "network-expansion/6", "autoprog/4", "prunetrain/12"):
        path = tmp_path / "figure.svg"
        draw_figure(FIGURES[name], [read_output(folder(tmp_path, *records))], path)
        assert "<script" not in path.read_text() and "frac" in path.read_text()


def test_the_command(study, tmp_path, capsys):
    assert main(["figure"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in FIGURES) and "compare" in told
    assert main(["figure", "prunetrain/2b", str(study), "--output", str(tmp_path / "a" / "b.png")]) == 0
    assert (tmp_path / "a" / "b.png").read_bytes()[1:4] == b"PNG"
    for words, message in (
        (["prunetrain/2x", "r"], "Did you mean prunetrain/2"),
        (["prunetrain/2b"], "no runs are given"),
        (["prunetrain/2b", str(study), "--output", "x.gif"], "NAME.png"),
    ):
        assert main(["figure", *words]) == 2 and message in capsys.readouterr().err


# PruneTrain by hand


def test_flops_over_epochs_by_hand():
    """1,000 FLOPs in the first epoch of four, 500 in the second, 400 in the others."""
    assert shares_of_epochs(pruned()) == [1, 0.5, 0.4, 0.4]
    assert pruned_in_phases(pruned()) == [pytest.approx(0.5), pytest.approx(0.1), pytest.approx(0.0)]
    found = one_time_overhead(pruned())  # the run needs 2.3 dense epochs
    assert found == [pytest.approx(x / 2.3 - 1) for x in (4, 1 + 3 * 0.5, 2 + 2 * 0.4, 3 + 0.4)]


def test_what_gating_leaves_by_hand():
    """Nothing is spared of the first stage, a tenth of the second, a fifth of the third and of the end."""
    assert gated_inference(pruned()) == pytest.approx(0.4 * 0.8)
    assert gated_training(pruned()) == pytest.approx((5 * 1 + 5 * 0.5 * 0.9 + 10 * 0.4 * 0.8) / 20)


def test_what_grows_is_not_broken_down():
    growing = pruned()
    growing["stages"][0]["training_flops"] = 100
    assert shrinking([pruned(), growing]) == [pruned()]


def test_mutants_are_refused_or_drawn(tmp_path):
    """One message or a picture, and nothing runs."""
    names, text = ["prunetrain/2b", "prunetrain/10", "network-expansion/6"], json.dumps(EVERY)
    kinds = {"drawn": 0, "refused": 0}
    for seed in range(30):
        dice = random.Random(seed)
        (tmp_path / "results.json").write_bytes(text_of(text, dice))
        try:
            output = read_output(tmp_path)
            draw_figure(FIGURES[dice.choice(names)], [output], tmp_path / "x.svg")
            kinds["drawn"] += 1
        except ConfigError:
            kinds["refused"] += 1
    assert min(kinds.values()) > 2, kinds


def traced(model, size=8):
    return morphogen.trace(model, torch.zeros(2, 3, size, size))


def test_the_share_that_gates_leave_by_hand():
    """Plain on 8 x 8: conv1 is 3 to 8 channels, conv2 8 to 16, both 3 x 3, then 16 x 16 numbers to 10."""
    net = traced(Plain())
    model = net.model
    flops = {"conv1": 2 * 8 * 3 * 9 * 64, "conv2": 2 * 16 * 8 * 9 * 16, "fc": 2 * 256 * 10}
    whole = sum(flops.values())
    assert gated_share(net, whole, 1e-4) == 1
    with torch.no_grad():
        model.conv1.weight[:2] = 0  # two of eight outputs; conv2 goes on reading them
        model.conv2.weight[:, 7] = 0  # one of eight inputs
        model.conv2.weight[:4] = 1e-5  # four of sixteen outputs
    spared = flops["conv1"] * 2 / 8 + flops["conv2"] * (1 - 7 / 8 * 12 / 16)
    assert gated_share(net, whole, 1e-4) == pytest.approx(1 - spared / whole)
    assert gated_share(net, 0, 1e-4) == 1


# Correlations


def test_correlations_by_hand():
    """Two old channels and one new one that is the opposite of the first."""
    net = traced(Plain())
    dense = net.dense
    small = SubNetwork({**dense.channels, "conv1": (0, 1)}, dense.blocks, dense.resolution)
    large = SubNetwork({**dense.channels, "conv1": (0, 1, 2)}, dense.blocks, dense.resolution)
    morph(net, small)
    morph(net, large)
    model, image = net.model.eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model.conv1.weight[2] = -2 * model.conv1.weight[0]
    with FeatureMaps(net, model, small) as maps:
        model(image)
        model(torch.zeros(1, 3, 8, 8))  # later images do not count
    found = maps.correlations()
    assert found["layer"] == "conv1" and found["new"] == [False, False, True]
    first = model.conv1(image)[0].flatten(1).detach()
    expected = torch.corrcoef(first)
    assert torch.allclose(torch.tensor(found["matrix"]), expected, atol=1e-3)
    assert found["matrix"][0][2] == -1 and between(found) == 1
    assert not model.conv1._forward_hooks


def test_without_growth_there_are_no_correlations():
    net = traced(Plain())
    with FeatureMaps(net, net.model, net.dense) as maps:
        net.model(torch.zeros(1, 3, 8, 8))
    assert maps.correlations() is None


def test_a_constant_map_correlates_with_nothing_and_wide_layers_are_thinned():
    maps = FeatureMaps.__new__(FeatureMaps)
    maps._layer, maps._new = "wide", torch.arange(100) >= 90
    maps._maps = torch.randn(100, 9)
    maps._maps[0] = 5.0
    found = maps.correlations()
    assert len(found["matrix"]) == MOST == len(found["new"]) and found["new"].count(True) == 10
    assert found["matrix"][0] == [0.0] * MOST and found["matrix"][1][1] == pytest.approx(1)


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """Records of two real runs that grow once, of the two operators that Figure 6 compares."""
    recipe = Recipe("nets:Residual", epochs=2, batch_size=64, images=128, test_images=32, image_size=8, warn_drop=100)
    records = []
    for operator in ("replicate", "orthogonal"):
        method = NetworkExpansion(width=0.5, stages=2, operator=operator)
        trained = Run(recipe, load_data(recipe), method, f"NetworkExpansion(operator='{operator}')", seed=0)
        list(trained.epochs())
        records.append(json.loads(json.dumps(trained.ledger.record())))
    return records


def test_copies_are_seen_in_a_real_run(operators, tmp_path):
    """As in the paper: to a replicated channel there is another that is alike, to an orthogonal one there is not."""
    for record in operators:
        check_record(record)
        assert record["dense"]["channels"] == record["history"][-1]["subnetwork"]["channels"]
    copied, orthogonal = (morph["correlations"] for _, morph in correlated(operators))
    assert between(copied) > 0.99 > between(orthogonal)
    draw_figure(FIGURES["network-expansion/6"], [read_output(folder(tmp_path, *operators))], tmp_path / "six.png")
    assert (tmp_path / "six.png").stat().st_size > 5000


def test_runs_that_are_not_seeds_of_each_other_are_not_averaged(tmp_path):
    output = read_output(folder(tmp_path / "x", run(), run(seed=1, data="letters"), grown()))
    with pytest.raises(ConfigError, match=r"Dense: .*cannot be averaged; expected net, digits.*net, letters"):
        draw_figure(FIGURES["network-expansion/5"], [output], tmp_path / "f.png")

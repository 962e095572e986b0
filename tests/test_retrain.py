"""A growth schedule that was found, saved and followed again, by its own model or by another."""

import json

import pytest
import timm
import torch
from torch import nn

import morphogen
from morphogen.dense.subnet import SubNetwork
from morphogen.report.outcome import saved_schedule
from morphogen.run.assembly import Assembly
from morphogen.schedule.saved import SavedSchedule

from nets import Tower, image
from planted import found_schedule, plant_times
from prog_loop import Loop, resnet, vit


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The text of a schedule: two blocks and 4 pixels, three and 5, three and 7, all."""
    with pytest.MonkeyPatch.context() as patch:
        plant_times(patch)
        return found_schedule(tmp_path_factory.mktemp("found"), [(12, 2, 4), (12, 3, 5), (12, 3, 7)]).read_text()


@pytest.fixture
def file(found, tmp_path):
    file = tmp_path / "schedule.json"
    file.write_text(found)
    return file


@pytest.mark.parametrize(
    "epochs, starts", [(8, (0, 2, 4, 6)), (16, (0, 4, 8, 12)), (4, (0, 1, 2, 3)), (6, (0, 2, 3, 5))]
)
def test_a_found_schedule_keeps_its_shares(epochs, starts, file):
    method = morphogen.Retrain(file=str(file))
    loop = Loop("tower", method, epochs, 1).finish()
    assert [epoch for epoch, _ in loop.run.history] == list(starts)
    sizes = [(len(s.blocks["blocks"]), s.resolution[0]) for _, s in loop.run.history]
    assert sizes == [(2, 4), (3, 5), (3, 7), (4, 8)]
    assert saved_schedule(loop.run).stages == tuple(loop.run.history)
    assembly = Assembly(method)
    assert assembly.operator == "quiet" and assembly.depth_operator == "mogrow"
    loop.assert_whole()


SPOILED = {
    "truncated": lambda data, text: text[: len(text) // 2],
    "empty": lambda data, text: "",
    "another format": lambda data, text: text.replace("schedule 1", "schedule 2"),
    "a list": lambda data, text: "[1, 2]",
    "null": lambda data, text: "null",
    "no stages": lambda data, text: json.dumps(data | {"stages": []}),
    "stages out of order": lambda data, text: json.dumps(data | {"stages": data["stages"][::-1]}),
    "no epochs": lambda data, text: json.dumps(data | {"epochs": 0}),
    "epochs in words": lambda data, text: json.dumps(data | {"epochs": "eight"}),
    "half a regularisation": lambda data, text: json.dumps(data | {"regularisation": data["regularisation"][:3]}),
    "no settings": lambda data, text: json.dumps(data | {"settings": {}}),
    "a sub-network in words": lambda data, text: json.dumps(
        data | {"stages": [{"epoch": 0, "subnetwork": {"channels": 3}}]}
    ),
    "an operator that is a list": lambda data, text: json.dumps(
        data | {"settings": data["settings"] | {"operator": ["random"]}}
    ),
    "a decay in words": lambda data, text: json.dumps(data | {"settings": data["settings"] | {"decay": "much"}}),
    "a horizon of null": lambda data, text: json.dumps(data | {"settings": data["settings"] | {"horizon": None}}),
    "a resizing of 3": lambda data, text: json.dumps(data | {"settings": data["settings"] | {"resizing": 3}}),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_schedule_is_one_line(what, file, found):
    morphogen.Retrain(file=str(file))
    file.write_text(SPOILED[what](json.loads(found), found))
    with pytest.raises(morphogen.ConfigError) as error:
        morphogen.Retrain(file=str(file))
    assert "\n" not in str(error.value)


def test_schedules_that_do_not_fit_are_one_line(file, tmp_path):
    with pytest.raises(morphogen.ConfigError, match=r"nowhere.json: not a growth schedule"):
        morphogen.Retrain(file=str(tmp_path / "nowhere.json"))
    with pytest.raises(morphogen.ConfigError, match=r"not a growth schedule \(IsADirectoryError"):
        morphogen.Retrain(file=str(tmp_path))
    method = morphogen.Retrain(file=str(file))
    with pytest.raises(morphogen.ConfigError, match=r"its last stage would have no epoch; expected at least 4 epochs"):
        Loop("tower", method, 2)


def test_a_run_that_was_stopped_has_no_schedule(monkeypatch):
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1), 4, 9)
    loop.epoch(0)
    assert saved_schedule(loop.run) is None
    loop.epoch(1)
    assert saved_schedule(loop.run).dense == loop.run.network.dense  # what follows is known


def schedule_of(*stages, path):
    """A file of stages of one epoch each."""
    usual = {
        "operator": "quiet",
        "depth_operator": "interpolate",
        "decay": None,
        "horizon": 0.1,
        "resizing": "bilinear",
    }
    strengths = tuple((1.0, 1.0, 1.0) for _ in stages)
    path.write_text(json.dumps(SavedSchedule(len(stages), tuple(enumerate(stages)), usual, strengths).to_dict()))
    return path


def followed(model, side, path, epochs=4):
    """(blocks in each stack, side) of each stage of another model that follows a file."""
    net = morphogen.trace(model, torch.zeros(2, 3, side, side))
    with pytest.warns(UserWarning, match="is the schedule of another model"):
        stages = morphogen.Retrain(file=str(path)).schedule(net, epochs)
    assert stages[-1].subnetwork == net.dense
    sizes = [
        ([len(s.subnetwork.blocks[stack.name]) for stack in net.stacks], s.subnetwork.resolution[0]) for s in stages
    ]
    return net, [s.start for s in stages], sizes


def test_a_vits_schedule_trains_a_resnet(tmp_path):
    """l = 0.5, 1, 1, 1 and n = 0.5, 0.75, 0.75, 1 of four blocks and 32 pixels, for stacks of 3 and 2 and 64 pixels.

    By hand: half of 3 and 2 blocks are 2 (halves go up) and 1; sides are 32, 48, 48 and 64.
    """
    net = morphogen.trace(vit(), torch.zeros(2, 3, 32, 32))
    stages = [net.subnetwork(depth=d, resolution=n) for d, n in ((0.5, 16), (1.0, 24), (1.0, 24), (1.0, 32))]
    path = schedule_of(*stages, path=tmp_path / "schedule.json")
    other = timm.create_model("resnet18", num_classes=10, layers=(1, 4, 3, 1), channels=(8, 8, 16, 16))
    _, starts, sizes = followed(other, 64, path, epochs=8)
    assert starts == [0, 2, 4, 6]
    assert sizes == [([2, 1], 32), ([3, 2], 48), ([3, 2], 48), ([3, 2], 64)]


def test_a_deeper_and_wider_model_follows_by_shares(tmp_path):
    """2, 3 and 4 of 4 blocks are 3, 5 (4.5) and 6 of 6; heads and channels stay whole."""
    net = morphogen.trace(vit(), torch.zeros(2, 3, 32, 32))
    stages = [net.subnetwork(depth=d, resolution=n) for d, n in ((0.5, 16), (0.75, 24), (1.0, 32))]
    path = schedule_of(*stages, path=tmp_path / "schedule.json")
    wider = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=6, num_heads=4, num_classes=10
    )
    other, _, sizes = followed(wider, 32, path)
    assert sizes == [([3], 16), ([5], 24), ([6], 32)]
    with pytest.warns(
        UserWarning, match=r"\(4 blocks, 32 x 32\).*0.50, 0.50, 1.00; 0.75, 0.75, 1.00; 1.00, 1.00, 1.00"
    ):
        schedule = morphogen.Retrain(file=str(path)).schedule(other, 3)
    assert all(stage.subnetwork.channels == other.dense.channels for stage in schedule)
    nested = [set(stage.subnetwork.blocks["blocks"]) for stage in schedule]
    assert nested[0] < nested[1] < nested[2]


@pytest.mark.parametrize(("more", "widths"), [({"multiple_of": 1}, [10, 15, 20]), ({}, [8, 16, 20])])
def test_a_schedule_of_widths_is_followed_by_shares(tmp_path, more, widths):
    """6 and 9 of 12 channels are 10 and 15 of 20, and 8 and 16 in multiples of 8."""
    net = morphogen.trace(Tower(), image())
    path = schedule_of(*(net.subnetwork(width=w) for w in (0.5, 0.75, 1.0)), path=tmp_path / "schedule.json")
    other = morphogen.trace(Tower(3, 20), image())
    with pytest.warns(UserWarning, match=r"1.00, 1.00, 0.50; 1.00, 1.00, 0.75; 1.00, 1.00, 1.00"):
        stages = morphogen.Retrain(file=str(path), **more).schedule(other, 3)
    assert [len(stage.subnetwork.channels["conv1"]) for stage in stages] == widths


def test_what_cannot_be_translated_is_refused(tmp_path):
    """Stacks at unlike shares; a depth for a model without stacks; a side for a model without images."""
    net = morphogen.trace(resnet(), torch.zeros(2, 3, 32, 32))
    for subnetwork, text in (
        (
            SubNetwork({}, {"a": (0,), "b": (0, 1, 2, 3)}),
            r"the depth .* about 0.62 of each, found 1 of 4 in a\. Retrain",
        ),
        (
            SubNetwork({}, {"a": (0, 1), "b": (0, 1)}, (8, 16)),
            r"the resolution .* about 0.75 of each, found 8 of 16 in 0",
        ),
    ):
        dense = SubNetwork({}, {"a": (0, 1, 2, 3), "b": (0, 1, 2, 3)}, subnetwork.resolution and (16, 16))
        path = schedule_of(subnetwork, dense, path=tmp_path / "schedule.json")
        with pytest.raises(
            morphogen.ConfigError, match=f"schedule.json: this model cannot follow the schedule .*{text}"
        ):
            morphogen.Retrain(file=str(path)).schedule(net, 2)
    tower = morphogen.trace(Tower(), image())
    path = schedule_of(tower.subnetwork(depth=0.5), tower.dense, path=tmp_path / "schedule.json")
    flat = morphogen.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), image())
    with pytest.raises(morphogen.ConfigError, match=r"cannot follow the schedule .*no block stack, so its depth"):
        morphogen.Retrain(file=str(path)).schedule(flat, 2)
    path = schedule_of(tower.subnetwork(resolution=4), tower.dense, path=tmp_path / "schedule.json")
    words = morphogen.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), torch.zeros(2, 4))
    with pytest.raises(morphogen.ConfigError, match=r"cannot follow the schedule .*resolution cannot change"):
        morphogen.Retrain(file=str(path)).schedule(words, 2)

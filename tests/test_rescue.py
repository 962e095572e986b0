"""A loss that is no number right after a morph: back to before it, and the stage begins otherwise."""

import warnings

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor

import morphogen
from morphogen.dense.subnet import SubNetwork
from morphogen.errors import ConfigError, DivergedError
from morphogen.methods import build_method
from morphogen.parts import Grow
from morphogen.schedule.revision import halfway, revised
from morphogen.schedule.stages import Stage
from morphogen.train.checkpoint import Checkpoints, read, write
from morphogen.train.config import Recipe
from morphogen.train.loop import Run
from morphogen.train.sources import load_data

from nets import Residual


def part(channels, blocks=(0,), resolution=None):
    return SubNetwork({"a": tuple(channels)}, {"b": tuple(blocks)}, resolution)


SMALL, MIDDLE, WHOLE = part([0, 3]), part([0, 1, 2, 3, 4]), part(range(8), range(3), None)
SCHEDULE = [Stage(0, SMALL), Stage(2, MIDDLE), Stage(3, WHOLE)]


def test_halfway_by_hand():
    assert halfway(SMALL, MIDDLE) == part([0, 1, 2, 3])  # of 1, 2, 4 the first two
    assert halfway(MIDDLE, WHOLE) == part(range(7), [0, 1])
    assert halfway(part([0], [0], (8, 8)), part([0, 1], [0], (16, 16))) == part([0, 1], [0], (8, 8))
    assert halfway(WHOLE, SMALL) == WHOLE  # nothing is added


def test_revisions_by_hand():
    def told(epoch, option, stages=SCHEDULE, epochs=6):
        return [(stage.start, stage.subnetwork) for stage in revised(stages, epoch, option, epochs)]

    assert told(3, "later") == [(0, SMALL), (2, MIDDLE), (4, WHOLE)]
    assert told(3, "smaller") == [(0, SMALL), (2, MIDDLE), (3, halfway(MIDDLE, WHOLE)), (4, WHOLE)]
    assert told(2, "later") == [(0, SMALL), (3, WHOLE)]  # overtaken
    assert told(2, "smaller") == [(0, SMALL), (2, halfway(SMALL, MIDDLE)), (3, WHOLE)]
    again = revised(SCHEDULE, 3, "smaller", 6)
    assert told(3, "later", again) == [(0, SMALL), (2, MIDDLE), (4, WHOLE)]
    assert told(4, "later", again)[-1] == (5, WHOLE)


@pytest.mark.parametrize(
    ("epoch", "option", "message"),
    [
        (1, "later", "cannot begin in another way"),
        (0, "later", "cannot begin in another way"),
        (3, "smaller", "no epoch is left"),
        (2, "sideways", "no such option for a stage; expected smaller or later, found sideways"),
    ],
)
def test_what_cannot_be_revised_is_refused(epoch, option, message):
    with pytest.raises(ConfigError, match=message):
        revised(SCHEDULE, epoch, option, 4)
    search = [Stage(0, SMALL), Stage(2, WHOLE, (SMALL, WHOLE), 3), Stage(3, WHOLE)]
    with pytest.raises(ConfigError, match="found a search"):
        revised(search, 2, "later", 4)


class Fragile(nn.Sequential):
    """Its output is no number where it has more channels than it bears."""

    bears, until = 100, 0
    passes = 0

    def __init__(self, num_classes):
        convs = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Dropout(0.1)
        super().__init__(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

    def forward(self, x):
        y = super().forward(x)
        if self.training and self[0].weight.shape[0] > Fragile.bears and not isinstance(x, FakeTensor):
            Fragile.passes += 1
            if Fragile.passes <= Fragile.until:
                y = y * float("nan")
        return y


def run_of(method="NetworkExpansion(stages=3)", **settings):
    own = {"epochs": 6, "batch_size": 32, "images": 96, "test_images": 50, "lr": 0.05, "warn_drop": 100}
    recipe = Recipe("test_rescue:Fragile", **{**own, **settings})
    return Run(recipe, load_data(recipe), build_method(method), method, 0)


@pytest.fixture
def fragile(monkeypatch):
    def set_up(bears, until):
        for name, value in (("bears", bears), ("until", until), ("passes", 0)):
            monkeypatch.setattr(Fragile, name, value)

    return set_up


def widths(run):
    return [(epoch, len(subnetwork.channels["0"])) for epoch, subnetwork in run.attached.history]


def test_a_stage_is_put_off(fragile):
    fragile(bears=8, until=3)  # the three steps of the first epoch that is wider
    run = run_of(rescue=["later"])
    with pytest.warns(UserWarning, match=r"epoch 3, step 1: the loss is not finite.*which is an epoch later"):
        epochs = list(run.epochs())
    assert [epoch.epoch for epoch in epochs] == list(range(6))
    assert widths(run) == [(0, 8), (3, 12), (4, 16)]
    assert run.ledger.rescues[0]["epoch"] == 2 and run.ledger.rescues[0]["option"] == "later"
    assert run.attached.part(Grow).revisions == [(2, "later")]
    assert run.ledger.seconds["step"] > sum(e.seconds for e in epochs[:0])
    assert all(torch.isfinite(tensor).all() for tensor in run.result.state_dict().values())


def test_what_was_tried_in_vain_leaves_nothing_behind(fragile):
    """But the schedule: as a run that was told so from the beginning."""
    fragile(bears=8, until=3)
    run = run_of(rescue=["later"])
    with pytest.warns(UserWarning, match="not finite"):
        list(run.epochs())
    fragile(bears=8, until=0)
    other = run_of()
    other.attached.revise(2, "later")
    list(other.epochs())
    left, right = run.result.state_dict(), other.result.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_options_are_tried_in_order(fragile):
    fragile(bears=8, until=6)
    run = run_of(rescue=["smaller", "later"])
    with pytest.warns(UserWarning, match="not finite") as told:
        list(run.epochs())
    assert ["half of what it added" in str(w.message) for w in told] == [True, False]
    assert widths(run) == [(0, 8), (3, 12), (4, 16)]
    assert [(r["epoch"], r["option"]) for r in run.ledger.rescues] == [(2, "smaller"), (2, "later")]


def test_half_a_step(fragile):
    fragile(bears=10, until=3)  # 12 do not go at once, 10 do
    run = run_of(rescue=["smaller"])
    with pytest.warns(UserWarning, match="half of what it added enters now"):
        list(run.epochs())
    assert widths(run) == [(0, 8), (2, 10), (3, 12), (4, 16)]


@pytest.mark.parametrize(("rescue", "kept"), [([], False), (["later"], True)])
def test_it_stops_where_nothing_is_left_to_try(fragile, rescue, kept):
    fragile(bears=8, until=1000)
    run = run_of(rescue=rescue)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DivergedError, match="the loss is not finite"):
            list(run.epochs())
    assert all(torch.isfinite(tensor).all() for tensor in run.result.state_dict().values()) == kept


def test_a_loss_that_is_no_number_without_a_morph_is_not_blamed_on_one(fragile):
    fragile(bears=0, until=1000)
    run = run_of(rescue=["later", "smaller"])
    with pytest.raises(DivergedError, match="epoch 1, step 1"):
        list(run.epochs())


def test_a_revised_run_goes_on_from_its_state():
    def loop():
        torch.manual_seed(0)
        model = Residual()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        method = morphogen.NetworkExpansion(stages=3)
        return morphogen.attach(model, optimizer, method, example=torch.randn(2, 3, 8, 8), epochs=6)

    one, other = loop(), loop()
    one.revise(2, "smaller")
    for epoch in range(3):
        one.begin_epoch(epoch)
    other.load_state_dict(one.state_dict())
    assert other.part(Grow).revisions == [(2, "smaller")] and other.network.current == one.network.current
    assert [s.start for s in other.stages] == [0, 2, 3, 4]
    with pytest.raises(ConfigError, match="the epoch is past"):
        one.revise(2, "later")


def test_a_fall_of_accuracy_is_told_of(monkeypatch):
    run = run_of(warn_drop=10.0)
    accuracies = iter([50.0, 50.0, 39.0, 50.0, 50.0, 45.0, 50.0, 50.0, 50.0])
    monkeypatch.setattr(run, "_evaluate", lambda: (next(accuracies), {}))
    with pytest.warns(UserWarning, match=r"epoch 3: accuracy fell from 50.0 to 39.0 %.*warn_drop=10 points") as told:
        list(run.epochs())
    assert len([w for w in told if "accuracy fell" in str(w.message)]) == 1


def test_a_rescue_is_not_lost_when_the_run_is_resumed_in_its_epoch(fragile, tmp_path):
    """Stopped in the epoch that will go wrong, and resumed by another process."""
    fragile(bears=8, until=0)
    run = run_of(rescue=["later"])
    epochs = run.epochs()
    next(epochs), next(epochs)
    run._at = run._at.__class__(2)
    with run._random.active():
        run._before = None
        grown = run.state_dict()
        run._before = grown
        run._begin(2)
    run._at.step = 0
    write(tmp_path / "state.safetensors", run.state_dict())
    run.attached.close()

    fragile(bears=8, until=3)
    resumed = run_of(rescue=["later"])
    resumed.load_state_dict(read(tmp_path / "state.safetensors"))
    with pytest.warns(UserWarning, match=r"not finite.*back to before the morph"):
        assert [epoch.epoch for epoch in resumed.epochs()] == [2, 3, 4, 5]
    assert widths(resumed) == [(0, 8), (3, 12), (4, 16)]


def test_a_run_that_has_gone_back_is_resumed_from_where_it_is(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (300, 600, 100, 400):  # back after 600
        checkpoints.save(5, step, {"step": step})
        assert checkpoints.latest() == {"step": step}
    assert len(checkpoints.files()) == 2

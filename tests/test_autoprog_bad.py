"""What goes wrong in a run of AutoProg: calls left out, losses that are not finite, odd widths and spaces."""

import pytest
import torch

import morphogen

from checks import snapshot
from nets import Tower, image
from planted import plant_times, sized
from prog_loop import NETS, Loop, plant_choices


def test_a_step_without_begin_step_is_refused():
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1), 4, 9, hooks=False)
    with pytest.raises(morphogen.ConfigError, match=r"before it has begun; expected images = run.begin_step\(images\)"):
        loop.run.end_step()
    loop.step()
    with pytest.raises(morphogen.ConfigError, match="before it has begun"):
        loop.run.end_step()


def test_a_search_whose_steps_were_not_told_is_refused():
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1), 4, 9)
    before = snapshot(loop.model)
    with pytest.raises(morphogen.ConfigError, match=r"a step of every candidate; .*found steps of 0 candidates"):
        loop.run.begin_epoch(1)
    assert all(torch.equal(value, snapshot(loop.model)[key]) for key, value in before.items())


def test_without_recycling_the_next_epoch_must_be_asked_for():
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1, recycle=False), 4, 9)
    assert loop.epoch(0) == 0
    with pytest.raises(morphogen.ConfigError, match=r"expected epoch 0, as run.next_epoch\(0\) says, found epoch 1"):
        loop.run.begin_epoch(1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_candidate_whose_loss_is_not_finite_is_dropped_and_the_run_goes_on(bad, monkeypatch):
    plant_times(monkeypatch)
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1), 4, 9)

    def loss(images, _):
        output, size = sized(loop.model, images)
        return output.sum() * bad if size == (12, 2, 4) else 0 * output.sum() + images.shape[-1]

    loop.run.probe = morphogen.Probe(loss, [loop.batch])
    with pytest.warns(UserWarning, match=r"it is dropped \(2 blocks, 4 x 4\)"):
        loop.finish()
    (found,) = loop.searches
    assert found.subnetwork.resolution == (4, 4) and len(found.subnetwork.blocks["blocks"]) == 3
    loop.assert_whole()


def test_a_loss_that_is_never_finite_stops_the_run_and_leaves_an_ordinary_network(monkeypatch):
    loop = Loop("tower", morphogen.AutoProg(stages=2, search_epochs=1), 4, 9, hooks=False)
    loop.run.probe = morphogen.Probe(lambda x, y: loop.model(x).sum() * float("nan"), [loop.batch])
    loop.epoch(0)
    with pytest.raises(morphogen.TrainingError, match="no candidate has a finite loss"), pytest.warns(UserWarning):
        loop.run.begin_epoch(1)
    loop.run.close()
    assert not loop.model._forward_hooks and not any("forward" in m.__dict__ for m in loop.model.modules())


def test_widths_that_no_multiple_divides_still_end_whole(monkeypatch):
    """Thirteen channels in multiples of four: 8, 12, 12, 13."""
    plant_choices(monkeypatch, 2)
    monkeypatch.setitem(NETS, "odd", (lambda: Tower(2, 13), 8, "blocks", ("fc.bias",)))
    method = morphogen.AutoProg(stages=3, search_epochs=1, dimensions=("width",), multiple_of=4)
    loop = Loop("odd", method, 6, 4)
    sizes = [len(c.channels["conv1"]) for c in loop.searching.stage.candidates]
    assert sizes == [8, 12, 13]
    loop.finish()
    assert len(loop.searches) == 1  # whole at once
    loop.assert_whole()


def test_a_space_of_ones_own(monkeypatch):
    """The dense network is a candidate of the first search although it is not listed; later what lacks something of the
    present network is none."""
    plant_choices(monkeypatch, 0, 1)
    net = morphogen.trace(Tower(), image())
    space = [net.subnetwork(depth=d, width=w) for d, w in ((0.5, 1.0), (1.0, 0.5), (0.75, 0.5), (0.75, 1.0))]
    loop = Loop("tower", morphogen.AutoProg(stages=3, search_epochs=1, space=tuple(space)), 6, 5).finish()
    first, second = ([c.subnetwork for c in found.candidates] for found in loop.searches)
    assert first == [*space, net.dense]
    assert second == [space[0], space[3]]
    loop.assert_whole()

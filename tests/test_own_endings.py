"""How a run in a loop of one's own ends, early or not, and what a finished one leaves behind."""

import copy

import pytest

import morphogen
from morphogen.extend import ConfigError

from nets import Residual, image
from own_loops import DEEP, WIDE, attached, step
from planted import plant_sparse


def test_early_stopping():
    model, _, run = attached(WIDE, make=Residual, epochs=6)
    run.begin_epoch(0)
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"in epoch 0 of 6.*not at its full size \(.*channels\); run\.end\(grow=True"):
        run.end()
    model.load_state_dict(best)
    run.end(grow=True)
    Residual().load_state_dict(model.state_dict())


def test_a_smaller_state_after_the_end_is_said():
    model, _, run = attached(morphogen.NetworkExpansion(width=0.5, stages=3), make=Residual, epochs=6)
    run.begin_epoch(0)
    best = copy.deepcopy(model.state_dict())
    run.begin_epoch(1)
    run.begin_epoch(2)
    with pytest.warns(UserWarning, match="not at its full size"):
        run.end()
    with pytest.warns(UserWarning, match=r"of a smaller network, and the run is over .*run\.end\(grow=True\)"):
        model.load_state_dict(best)
    run.end(grow=True)
    Residual().load_state_dict(model.state_dict())


@pytest.mark.parametrize("grow", [False, True])
def test_a_finished_run_is_an_ordinary_model(grow):
    model, optimizer, run = attached(DEEP, steps_per_epoch=1, epochs=2)
    names = [name for name in vars(model) if name.endswith("hooks")] + ["_state_dict_hooks"]
    for epoch in range(2):
        run.begin_epoch(epoch)
        step(model, optimizer)
    assert run.ended and run.end(grow=grow) is None
    assert not any(getattr(model, name) for name in names)
    assert not optimizer._optimizer_step_post_hooks and not optimizer._optimizer_load_state_dict_pre_hooks
    assert "morphogen" not in model.state_dict()._metadata[""] and "morphogen" not in optimizer.state_dict()
    with pytest.raises(ConfigError, match="the run is over"):
        run.begin_epoch(1)


def test_the_last_step_prunes():
    model, optimizer, run = attached(morphogen.PruneTrain(interval=2), make=Residual, epochs=2, steps_per_epoch=1)
    optimizer.param_groups[0]["lr"] = 0.0  # what is planted stays
    for epoch in range(2):
        run.begin_epoch(epoch)
        step(model, optimizer, loss_of=run.penalised)
        if epoch == 0:
            plant_sparse(run.network, run.network.subnetwork(width=0.5))
    assert run.ended and run.end() is not None and run.network.current != run.network.dense


def test_a_finished_run_goes_back_with_its_hooks():
    model, optimizer, run = attached(DEEP, steps_per_epoch=1, epochs=2)
    run.begin_epoch(0)
    state = copy.deepcopy(run.state_dict())
    step(model, optimizer)
    run.begin_epoch(1)
    step(model, optimizer)
    finished = copy.deepcopy(run.state_dict())
    assert run.ended and not model._forward_pre_hooks
    run.load_state_dict(state)
    assert not run.ended and model._forward_pre_hooks
    step(model, optimizer)
    run.begin_epoch(1)
    other, its, fresh = attached(DEEP, steps_per_epoch=1, epochs=2)
    fresh.load_state_dict(finished)
    assert fresh.ended and not other._forward_pre_hooks
    step(other, its)


def test_a_run_that_ended_early_lets_go_when_another_begins():
    model, optimizer, run = attached(WIDE, make=Residual, epochs=6)
    run.begin_epoch(0)
    with pytest.warns(UserWarning, match="not at its full size"):
        run.end()
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1
    other = morphogen.attach(model, optimizer, WIDE, example=image(4), epochs=6)
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1
    other.begin_epoch(0)
    with pytest.raises(ConfigError, match="a run is attached to this model"):
        run.end(grow=True)
    other.end(grow=True)
    assert not model._load_state_dict_pre_hooks and not optimizer._optimizer_load_state_dict_pre_hooks
